//! As much HTTP/1.1 over a unix socket as talking to dockerd takes: one connection, kept.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

#[derive(Debug)]
pub struct Http(BufReader<UnixStream>);

impl Http {
    /// # Errors
    /// If nobody listens there.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends JSON, or nothing for `Value::Null`, and gives the JSON of the answer.
    ///
    /// # Errors
    /// An answer that is no success, with its text.
    pub fn json(&mut self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
        let answer = self.call(method, path, "application/json", &body)?;
        if answer.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&answer).context("dockerd's answer is not JSON") }
    }

    /// # Errors
    /// An answer that is no success, with its text.
    pub fn call(&mut self, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<Vec<u8>> {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: docker\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
        let stream = self.0.get_mut();
        stream.write_all(&[head.as_bytes(), body].concat())?;
        let status = self.line()?;
        let code: u16 = status.split(' ').nth(1).and_then(|code| code.parse().ok()).with_context(|| format!("no status in {status:?}"))?;
        let (mut length, mut chunked) = (0, false);
        loop {
            let header = self.line()?.to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            chunked |= header.starts_with("transfer-encoding:") && header.contains("chunked");
        }
        let answer = if chunked { self.chunks()? } else { self.exactly(length)? };
        ensure!((200..300).contains(&code), "{method} {path}: {status}: {}", String::from_utf8_lossy(&answer).trim());
        Ok(answer)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            bail!("dockerd closed the connection");
        }
        Ok(line.trim_end().to_owned())
    }

    fn exactly(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(body)
    }

    fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(&self.line()?, 16)?;
            body.extend(self.exactly(size)?);
            self.line()?;
            if size == 0 {
                return Ok(body);
            }
        }
    }
}

/// What may stand in a query as it is; the rest as `%XX`.
#[must_use]
pub fn query(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_an_answer_are_read_and_the_connection_is_kept() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[1,2,\r\n2\r\n3]\r\n0\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
            .unwrap();
        let mut http = Http(BufReader::new(ours));
        assert_eq!(http.json("GET", "/a", &Value::Null).unwrap(), serde_json::json!([1, 2, 3]));
        let refusal = http.json("GET", "/b", &Value::Null).unwrap_err().to_string();
        assert!(refusal.contains("404") && refusal.ends_with("no"), "{refusal}");
    }

    #[test]
    fn a_query_is_escaped() {
        assert_eq!(query(r#"{"a":["x y"]}"#), "%7B%22a%22%3A%5B%22x%20y%22%5D%7D");
    }
}
