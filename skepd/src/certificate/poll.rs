//! What an answer of `NodeCertificateStatus` means (wire-behaviour 4.2, step 4). Pure.

use skep_proto::v1::{NodeCertificateStatusResponse, issuance_status::State};
use std::time::Duration;
use tonic::{Code, Status};

/// The pauses between questions: from the first to the second of these, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// PEM of the chain.
    Done(Vec<u8>),
    /// Ask again on the same connection after this time.
    Again(Duration),
    /// This connection is of no use; why.
    Elsewhere(String),
    /// The CA will not issue it; why.
    Failed(String),
}

/// Waits for the certificate of one request.
#[derive(Debug)]
pub struct Poll {
    csr: Vec<u8>,
    pause: Duration,
}

impl Poll {
    pub fn new(csr: &[u8]) -> Self {
        Self { csr: csr.to_owned(), pause: FIRST_PAUSE }
    }

    /// Takes an answer in. One that is about another request (the node asked twice, or the answer is older) is as none.
    pub fn answered(&mut self, answer: Result<NodeCertificateStatusResponse, Status>) -> Next {
        let answer = match answer {
            Ok(answer) => answer,
            // The manager held the call until the time was up: the certificate is not there yet. No pause on top of that.
            Err(status) if status.code() == Code::DeadlineExceeded || status.code() == Code::Cancelled => {
                return Next::Again(Duration::ZERO);
            }
            Err(status) if status.code() == Code::NotFound => {
                return Next::Failed("the node was removed from the cluster before its certificate was issued".into());
            }
            Err(status) => return Next::Elsewhere(words(&status)),
        };
        let (status, certificate) = (answer.status.unwrap_or_default(), answer.certificate.unwrap_or_default());
        let ours = certificate.csr == self.csr;
        match State::try_from(status.state) {
            Ok(State::Issued | State::Rotate) if ours && !certificate.certificate.is_empty() => Next::Done(certificate.certificate),
            Ok(State::Failed) if ours => Next::Failed(if status.err.is_empty() { "no reason was given".into() } else { status.err }),
            _ => Next::Again(self.grow()),
        }
    }

    fn grow(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }
}

/// A refusal for people.
pub fn words(status: &Status) -> String {
    if status.message().is_empty() { status.code().description().to_owned() } else { status.message().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::v1::{Certificate, IssuanceStatus};

    fn answer(state: State, csr: &[u8]) -> Result<NodeCertificateStatusResponse, Status> {
        let status = Some(IssuanceStatus { state: state as i32, err: "too bad".into() });
        let certificate = Certificate { csr: csr.to_vec(), certificate: b"chain".to_vec(), ..Certificate::default() };
        Ok(NodeCertificateStatusResponse { status, certificate: Some(certificate) })
    }

    #[test]
    fn an_issued_certificate_ends_the_wait() {
        assert_eq!(Poll::new(b"mine").answered(answer(State::Issued, b"mine")), Next::Done(b"chain".to_vec()));
        assert_eq!(Poll::new(b"mine").answered(answer(State::Rotate, b"mine")), Next::Done(b"chain".to_vec()));
        assert_eq!(Poll::new(b"mine").answered(answer(State::Failed, b"mine")), Next::Failed("too bad".into()));
    }

    #[test]
    fn an_answer_about_another_request_is_none() {
        let mut poll = Poll::new(b"mine");
        let pauses = [State::Issued, State::Failed, State::Rotate].map(|state| poll.answered(answer(state, b"other")));
        assert_eq!(pauses, [1, 2, 4].map(|seconds| Next::Again(Duration::from_secs(seconds))));
    }

    #[test]
    fn the_pause_grows_to_half_a_minute() {
        let mut poll = Poll::new(b"mine");
        let last = (0..9).map(|_| poll.answered(answer(State::Pending, b"mine"))).last();
        assert_eq!(last, Some(Next::Again(LONGEST_PAUSE)));
    }

    #[test]
    fn a_call_that_was_held_to_its_end_is_repeated_at_once_and_a_broken_one_elsewhere() {
        let mut poll = Poll::new(b"mine");
        assert_eq!(poll.answered(Err(Status::deadline_exceeded(""))), Next::Again(Duration::ZERO));
        assert_eq!(poll.answered(Err(Status::unavailable("gone"))), Next::Elsewhere("gone".into()));
        assert!(matches!(poll.answered(Err(Status::not_found("node"))), Next::Failed(_)));
    }
}
