//! Reads that are asked again while the cluster has no leader or skepd starts anew.

use http_body_util::{BodyExt as _, Full};
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::body::Body;

type BoxError = Box<dyn Error + Send + Sync>;

/// Marks the answer to a read that nobody gave in time.
pub const NOTHING_CHANGED: &str = "skep-nothing-changed";

/// A manager's death is over within two seconds; a cluster that has no leader for longer has lost its majority, and whoever asked
/// wants to know.
const LIMIT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A channel that repeats calls which change nothing, for as long as the answer is UNAVAILABLE and `limit` has not passed. Calls that
/// change something go through once: whether the lost one was carried out is for the user to look up.
#[derive(Debug, Clone)]
pub struct Patient<S> {
    inner: S,
    limit: Duration,
    first_pause: Duration,
}

impl<S> Patient<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, limit: LIMIT, first_pause: FIRST_PAUSE }
    }
}

impl<S> tower::Service<http::Request<Body>> for Patient<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if !only_reads(request.uri().path()) {
            let answer = self.inner.call(request);
            return Box::pin(async move { answer.await.map_err(Into::into) });
        }
        // The one that was made ready is used up; the clone stays for the next call.
        let ready = self.clone();
        let Self { inner, limit, first_pause } = std::mem::replace(self, ready);
        Box::pin(ask_until_answered(inner, request, limit, first_pause))
    }
}

async fn ask_until_answered<S>(
    mut service: S,
    request: http::Request<Body>,
    limit: Duration,
    first_pause: Duration,
) -> Result<http::Response<Body>, BoxError>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>> + Clone,
    S::Error: Into<BoxError>,
{
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let since = Instant::now();
    let mut pause = first_pause;
    loop {
        let again = http::Request::from_parts(head.clone(), Body::new(Full::new(body.clone())));
        let mut answer = service.call(again).await.map_err(Into::into);
        let nobody = match &answer {
            Ok(response) => is_unavailable(response),
            // The connection broke: skepd went away, and often comes back.
            Err(_) => true,
        };
        if !nobody || since.elapsed() + pause > limit {
            if let Ok(response) = &mut answer {
                response.headers_mut().insert(NOTHING_CHANGED, http::HeaderValue::from_static("1"));
            }
            return answer;
        }
        if pause == first_pause * 8 {
            eprintln!("swarmctl: no manager answers, perhaps a leader is being elected; asking for up to {} s", limit.as_secs());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        tower::ServiceExt::<http::Request<Body>>::ready(&mut service).await.map_err(Into::into)?;
    }
}

/// A refusal without a body comes as headers alone, with the status among them.
fn is_unavailable(response: &http::Response<Body>) -> bool {
    response.headers().get("grpc-status").is_some_and(|code| Code::from_bytes(code.as_bytes()) == Code::Unavailable)
}

/// Goes by the method's name, which SwarmKit's API and ours are consistent in: `…/ListNodes`, `…/GetCluster`, `…/Status`.
fn only_reads(path: &str) -> bool {
    let method = path.rsplit('/').next().unwrap_or_default();
    method == "Status" || method.starts_with("List") || method.starts_with("Get")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Refuses so often, then answers.
    fn after(refusals: usize, asked: &Arc<AtomicUsize>) -> Patient<impl Fake> {
        let asked = Arc::clone(asked);
        let inner = tower::service_fn(move |request: http::Request<Body>| {
            let asked = Arc::clone(&asked);
            async move {
                let sent = request.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(sent, "question", "every try sends the whole request");
                let refused = asked.fetch_add(1, Ordering::Relaxed) < refusals;
                let code = if refused { Code::Unavailable } else { Code::NotFound };
                Ok::<_, BoxError>(tonic::Status::new(code, "").into_http::<Body>())
            }
        });
        Patient { inner, limit: Duration::from_millis(50), first_pause: Duration::from_millis(1) }
    }

    trait Fake:
        tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = BoxError, Future: Send> + Clone + Send + 'static
    {
    }
    impl<T> Fake for T where
        T: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = BoxError, Future: Send> + Clone + Send + 'static
    {
    }

    async fn code_of(mut service: Patient<impl Fake>, path: &str) -> Code {
        let request = http::Request::builder().uri(path).body(Body::new(Full::from("question"))).unwrap();
        let response = tower::Service::call(&mut service, request).await.unwrap();
        Code::from_bytes(response.headers()["grpc-status"].as_bytes())
    }

    #[tokio::test]
    async fn a_read_is_repeated_until_a_leader_answers() {
        let asked = Arc::default();
        assert_eq!(code_of(after(3, &asked), "/docker.swarmkit.v1.Control/ListNodes").await, Code::NotFound);
        assert_eq!(asked.load(Ordering::Relaxed), 4);
    }

    #[tokio::test]
    async fn a_change_is_sent_once() {
        let asked = Arc::default();
        assert_eq!(code_of(after(3, &asked), "/docker.swarmkit.v1.Control/UpdateNode").await, Code::Unavailable);
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn patience_ends() {
        let asked = Arc::default();
        assert_eq!(code_of(after(usize::MAX, &asked), "/skep.v1.LocalNode/Status").await, Code::Unavailable);
        assert!(asked.load(Ordering::Relaxed) > 2);
    }
}
