//! How messages become bytes and bytes messages: as tonic does it, but without room in advance, and only requests that need no more
//! room than they may.
//!
//! tonic gives every stream a buffer of 8 KiB as soon as it opens. An agent has three streams on which almost nothing is ever said,
//! and a manager has ten thousand agents.

use crate::weight::{self, TooHeavy};
use prost::bytes::Buf as _;
use prost::{Message, Name};
use std::marker::PhantomData;
use std::sync::Arc;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Messages of a stream that are ready together go out together up to this size: tonic's own default.
const GATHERED: usize = 32 * 1024;
/// What a request may become in memory. Requests that are mostly contents, such as a piece of a backup, become what they are.
pub(crate) const ROOM: usize = 4 << 20;
/// Beside contents.
const MARGIN: usize = 16 << 10;
/// Shorter requests cannot become more than [`ROOM`]: two bytes make less than 2 KiB, the first of a list less than 4 (there is a test).
pub(crate) const SHORT: usize = 2 << 10;

/// What the generated clients and servers use.
#[derive(Debug, Clone)]
pub struct LeanCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for LeanCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for LeanCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = LeanEncoder<T>;
    type Decoder = LeanDecoder<U>;

    fn encoder(&mut self) -> LeanEncoder<T> {
        LeanEncoder(PhantomData)
    }

    fn decoder(&mut self) -> LeanDecoder<U> {
        LeanDecoder(PhantomData)
    }
}

/// No room in advance. tonic also divides by it when it compresses, which we neither offer nor have compiled in.
fn settings() -> BufferSettings {
    BufferSettings::new(0, GATHERED)
}

/// Takes exactly the room that a message needs.
#[derive(Debug, Clone)]
pub struct LeanEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for LeanEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.encoded_len());
        item.encode(buffer).map_err(|error| Status::internal(format!("a message could not be encoded: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        settings()
    }
}

/// The bytes of a message are not those of its type. INTERNAL to whoever reads an answer; a server finds it as the source of the
/// status and knows that its caller is to blame.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the message cannot be read: {0}")]
pub struct Unreadable(prost::DecodeError);

/// Reads messages, and says so if it cannot.
#[derive(Debug, Clone)]
pub struct LeanDecoder<U>(PhantomData<U>);

impl<U: Message + Name + Default> Decoder for LeanDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let length = buffer.remaining();
        if length <= SHORT {
            return read(buffer);
        }
        // No copy: the bytes are in one piece.
        let message = buffer.copy_to_bytes(length);
        if let Some(shape) = weight::request(U::PACKAGE, U::NAME) {
            let room = ROOM.max(length + MARGIN);
            weight::weigh(&message, shape, room).map_err(|TooHeavy| too_heavy(length, room))?;
        }
        read(message)
    }

    fn buffer_settings(&self) -> BufferSettings {
        settings()
    }
}

fn too_heavy(length: usize, room: usize) -> Status {
    let text = format!("a message of {length} bytes would take more than {room} in memory: too many entries; send fewer at once");
    Status::resource_exhausted(text)
}

fn read<U: Message + Default>(bytes: impl prost::bytes::Buf) -> Result<Option<U>, Status> {
    U::decode(bytes).map(Some).map_err(|error| {
        let unreadable = Unreadable(error);
        let mut status = Status::internal(unreadable.to_string());
        status.set_source(Arc::new(unreadable));
        status
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::watch_client::WatchClient;
    use crate::v1::watch_server::{Watch, WatchServer};
    use crate::v1::{self, WatchMessage, WatchRequest};
    use tonic::codegen::tokio_stream::{self, StreamExt as _};
    use tonic::{Request, Response};

    /// Sizes on both sides of what is gathered.
    const SIZES: [usize; 8] = [0, 1, 100, GATHERED - 1, GATHERED, 3 * GATHERED, 5, 0];

    fn message(size: usize) -> WatchMessage {
        let service = v1::Service { id: "s".repeat(size), ..v1::Service::default() };
        let object = v1::Object { object: Some(v1::object::Object::Service(service)) };
        let event = v1::watch_message::Event { object: Some(object), ..v1::watch_message::Event::default() };
        WatchMessage { events: vec![event], version: None }
    }

    /// Says messages of all sizes, then what is asked for as an error.
    struct Sayer;

    #[tonic::async_trait]
    impl Watch for Sayer {
        type WatchStream = tokio_stream::Iter<std::vec::IntoIter<Result<WatchMessage, Status>>>;

        async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
            let mut said: Vec<_> = SIZES.into_iter().map(|size| Ok(message(size))).collect();
            said.push(Err(Status::aborted("enough")));
            Ok(Response::new(tokio_stream::iter(said)))
        }
    }

    #[tokio::test]
    async fn messages_of_any_size_arrive_and_so_does_the_error_behind_them() {
        let mut client = WatchClient::new(WatchServer::new(Sayer));
        let mut stream = client.watch(WatchRequest::default()).await.unwrap().into_inner();
        for size in SIZES {
            assert_eq!(stream.next().await.unwrap().unwrap(), message(size));
        }
        assert_eq!(stream.next().await.unwrap().unwrap_err().message(), "enough");
    }

    #[tokio::test]
    async fn limits_of_message_sizes_stay() {
        let mut client = WatchClient::new(WatchServer::new(Sayer)).max_decoding_message_size(GATHERED);
        let mut stream = client.watch(WatchRequest::default()).await.unwrap().into_inner();
        let error = loop {
            if let Err(error) = stream.next().await.unwrap() {
                break error;
            }
        };
        assert_eq!(error.code(), tonic::Code::OutOfRange);
    }
}
