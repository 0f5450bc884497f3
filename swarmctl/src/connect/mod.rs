//! The way to a manager: TLS on the node's local socket, as SwarmKit's own client does it.

mod patient; // reads are repeated while there is no leader

use crate::failure::Failure;
use hyper_util::rt::TokioIo;
pub use patient::NOTHING_CHANGED;
pub use patient::Patient;
use skep_proto::skep::certificates_client::CertificatesClient;
use skep_proto::skep::explanations_client::ExplanationsClient;
use skep_proto::skep::local_images_client::LocalImagesClient;
use skep_proto::skep::local_node_client::LocalNodeClient;
use skep_proto::skep::network_settings_client::NetworkSettingsClient;
use skep_proto::skep::tunnels_client::TunnelsClient;
use skep_proto::v1::ca_client::CaClient;
use skep_proto::v1::control_client::ControlClient;
use skep_proto::v1::logs_client::LogsClient;
use skep_proto::v1::resource_allocator_client::ResourceAllocatorClient;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Largest answer taken: a list of very many tasks comes as one message.
const ANSWER_LIMIT: usize = 256 << 20;

/// One connection, from which clients of all services are made.
#[derive(Clone)]
pub struct Connection {
    channel: Patient<Channel>,
}

impl Connection {
    pub async fn open(socket: &Path) -> Result<Self, Failure> {
        // Whoever can open the socket is root on this machine, and whoever listens on it is skepd: the permissions of its directory
        // authenticate both, so the certificate is not looked at (wire-behaviour 2.2).
        let tls = skep_ca::Connector::local().map_err(|error| Failure::cannot_connect(socket, error))?;
        let path: PathBuf = socket.to_owned();
        let connector = tower::service_fn(move |_: http::Uri| {
            let (tls, path) = (tls.clone(), path.clone());
            async move {
                let stream = UnixStream::connect(&path).await?;
                let (stream, _) = tls.connect(stream).await.map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from_static("http://swarm-manager").connect_timeout(Duration::from_secs(5));
        let channel = endpoint.connect_with_connector(connector).await.map_err(|error| Failure::cannot_connect(socket, error))?;
        Ok(Self { channel: Patient::new(channel) })
    }

    pub fn control(&self) -> ControlClient<Patient<Channel>> {
        ControlClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_LIMIT)
    }

    pub fn logs(&self) -> LogsClient<Patient<Channel>> {
        LogsClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_LIMIT)
    }

    /// Answered by every node of a cluster, for its own containers.
    pub fn attachments(&self) -> ResourceAllocatorClient<Patient<Channel>> {
        ResourceAllocatorClient::new(self.channel.clone())
    }

    pub fn ca(&self) -> CaClient<Patient<Channel>> {
        CaClient::new(self.channel.clone())
    }

    pub fn certificates(&self) -> CertificatesClient<Patient<Channel>> {
        CertificatesClient::new(self.channel.clone())
    }

    pub fn network_settings(&self) -> NetworkSettingsClient<Patient<Channel>> {
        NetworkSettingsClient::new(self.channel.clone())
    }

    pub fn tunnels(&self) -> TunnelsClient<Patient<Channel>> {
        TunnelsClient::new(self.channel.clone())
    }

    pub fn explanations(&self) -> ExplanationsClient<Patient<Channel>> {
        ExplanationsClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_LIMIT)
    }

    pub fn node(&self) -> LocalNodeClient<Patient<Channel>> {
        LocalNodeClient::new(self.channel.clone())
    }

    pub fn images(&self) -> LocalImagesClient<Patient<Channel>> {
        LocalImagesClient::new(self.channel.clone())
    }
}
