//! Statuses, bodies and headers that clients rely on, seen without a client between.

use crate::support::{SOON, lab, request};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use skep_kit::{Lab, eventually};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

const SERVICE: &str =
    r#"{"name":"web","TASKTEMPLATE":{"containerspec":{"Image":"whoami","Args":["sleep"]},"Networks":null},"Labels":null}"#;

#[test]
fn services_and_tasks_answer_as_clients_expect() -> Result<()> {
    let Some(lab) = lab("the API of services")? else { return Ok(()) };
    let ask = |method: &str, path: &str, body: Option<&str>| request(&lab, method, path, body);
    let (status, body) = ask("POST", "/services/create", Some(SERVICE))?;
    ensure!(status == 201, "{status} {body}");
    let created: Value = serde_json::from_str(&body)?;
    let id = created["ID"].as_str().unwrap_or_default().to_owned();
    ensure!(id.len() == 25 && body.ends_with('\n'), "{body:?}");
    let (status, body) = ask("POST", "/v1.30/services/create", Some(SERVICE))?;
    ensure!(status == 409 && body.contains("name conflicts with an existing object"), "{status} {body}");

    let service = |query: &str| -> Result<Value> {
        let (status, body) = ask("GET", &format!("/v1.50/services/{id}{query}"), None)?;
        ensure!(status == 200, "{status} {body}");
        Ok(serde_json::from_str(&body)?)
    };
    let found = service("")?;
    ensure!(found["Spec"]["Labels"] == json!({}) && found["Endpoint"] == json!({"Spec": {}}), "{found}");
    ensure!(found["Spec"].get("UpdateConfig").is_none() && found.get("ServiceStatus").is_none(), "{found}");
    ensure!(service("?insertDefaults=true")?["Spec"]["UpdateConfig"]["Parallelism"] == json!(1));
    // Name and beginning of the id mean the same service.
    for name in ["web", &id[..6]] {
        let (status, body) = ask("GET", &format!("/services/{name}"), None)?;
        ensure!(status == 200 && body.contains(&id), "{name}: {status} {body}");
    }

    let list = |query: &str| -> Result<(u16, Value)> {
        let (status, body) = ask("GET", query, None)?;
        Ok((status, serde_json::from_str(&body)?))
    };
    for filters in [r#"{"name":{"we":true}}"#, r#"{"name":["we"]}"#, r#"{"id":["ID"],"mode":["replicated"]}"#] {
        let encoded: String = filters.replace("ID", &id[..8]).bytes().map(|byte| format!("%{byte:02x}")).collect();
        let (status, found) = list(&format!("/v1.50/services?status=true&filters={encoded}"))?;
        ensure!(status == 200 && found[0]["ServiceStatus"]["DesiredTasks"] == json!(1), "{filters}: {found}");
        let (_, old) = list(&format!("/v1.40/services?status=true&filters={encoded}"))?;
        ensure!(old[0].get("ServiceStatus").is_none(), "{old}");
    }
    ensure!(list("/services?filters=%7B%22x%22:%5B%22y%22%5D%7D")? == (400, json!({"message": "invalid filter 'x'"})));
    ensure!(list("/services?filters=%5B")?.0 == 400);

    let tasks = |filters: &str| -> Result<(u16, Value)> {
        let encoded: String = filters.bytes().map(|byte| format!("%{byte:02x}")).collect();
        list(&format!("/tasks?filters={encoded}"))
    };
    let task = eventually(SOON, "the task runs", || {
        let (_, found) = tasks(r#"{"service":["web"],"desired-state":["running"],"_up-to-date":["true"]}"#)?;
        ensure!(found[0]["Status"]["State"] == json!("running"), "{found}");
        Ok(found[0].clone())
    })?;
    ensure!(task["Slot"] == json!(1) && task["Labels"] == json!({}) && task["Volumes"].is_null(), "{task}");
    ensure!(task["Status"]["PortStatus"] == json!({}) && task["Status"]["ContainerStatus"]["PID"].as_i64() > Some(0), "{task}");
    ensure!(tasks(r#"{"service":["nothing"]}"#)?.0 == 404 && tasks(r#"{"node":["nothing"]}"#)?.0 == 404);
    ensure!(tasks(r#"{"desired-state":["x"]}"#)?.0 == 400);
    let id_of_task = task["ID"].as_str().unwrap_or_default();
    ensure!(ask("GET", &format!("/tasks/{id_of_task}"), None)?.0 == 200 && ask("GET", "/tasks/nothing", None)?.0 == 404);

    let (status, body) = ask("GET", "/services/web/logs", None)?;
    ensure!(status == 500 && body.contains("at least one stream"), "{status} {body}");
    ensure!(ask("GET", "/services/nothing/logs?stdout=1", None)?.0 == 404);

    let version = service("")?["Version"]["Index"].as_u64().unwrap_or_default();
    let update = |query: &str, body: &str| ask("POST", &format!("/services/web/update{query}"), Some(body));
    let (status, body) = update("", SERVICE)?;
    ensure!(status == 400 && body.contains("invalid service version ''"), "{status} {body}");
    let (status, body) = update(&format!("?version={}", version + 7), SERVICE)?;
    ensure!(status == 500 && body.contains("rpc error: code = Unknown desc = update out of sequence"), "{status} {body}");
    let (status, body) = update(&format!("?version={version}&rollback=previous"), SERVICE)?;
    ensure!(status == 400 && body.contains("does not have a previous spec"), "{status} {body}");
    let renamed = SERVICE.replace("\"web\"", "\"shop\"");
    ensure!(update(&format!("?version={version}"), &renamed)?.0 == 501, "a service cannot be renamed");
    let (status, body) = update(&format!("?version={version}"), SERVICE)?;
    ensure!((status, body.as_str()) == (200, "{\"Warnings\":null}\n"), "{status} {body:?}");

    ensure!(ask("DELETE", "/services/web", None)? == (200, String::new()));
    let (status, body) = ask("DELETE", "/services/web", None)?;
    ensure!(status == 404 && body.contains("service web not found"), "{status} {body}");
    ensure!(ask("POST", "/services/create", Some("{}"))?.0 == 400);
    let (status, body) = ask("POST", "/services/create", Some(r#"{"TaskTemplate":{"PluginSpec":{}}}"#))?;
    ensure!(status == 501, "{status} {body}");
    Ok(())
}

/// Bytes as they are over a connection of their own; what comes back before the other side closes it, or has said enough.
fn raw(lab: &Lab, bytes: &[u8]) -> Result<String> {
    let mut stream = UnixStream::connect(lab.run_dir().join("docker.sock"))?;
    stream.set_read_timeout(Some(SOON))?;
    // It may have hung up half-way through what it does not want to read.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while answer.len() < 64 << 10 && !answer.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut part) {
            Ok(0) | Err(_) => break,
            Ok(count) => answer.extend_from_slice(&part[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn hostile_requests_are_refused_and_hurt_nobody() -> Result<()> {
    let Some(lab) = lab("hostile requests")? else { return Ok(()) };
    // Each of these in a spec that is good without it: where it stands, and what it is.
    let numbers = [
        ("/Mode", r#"{"Replicated":{"Replicas":-1}}"#),
        ("/Mode", r#"{"Replicated":{"Replicas":18446744073709551615}}"#),
        ("/EndpointSpec", r#"{"Ports":[{"TargetPort":0}]}"#),
        ("/EndpointSpec", r#"{"Ports":[{"TargetPort":65536}]}"#),
        ("/UpdateConfig", r#"{"Delay":-1}"#),
        ("/TaskTemplate/Resources", r#"{"Limits":{"MemoryBytes":-5}}"#),
        ("/TaskTemplate/Resources", r#"{"Limits":{"NanoCPUs":-7}}"#),
    ];
    let texts = [
        ("/Name", r#""a/../b""#),
        ("/Name", r#""a\u001b[31mb""#),
        ("/Name", r#""a\nb""#),
        ("/Labels", r#"{"a\u0000":"b"}"#),
        ("/TaskTemplate/ContainerSpec/Env", r#"["A=\u0000b"]"#),
        ("/TaskTemplate/ContainerSpec/Command", r#"["a\u0000b"]"#),
    ];
    for (place, value) in numbers.into_iter().chain(texts) {
        let mut spec = json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "whoami"}}});
        let (parent, name) = place.rsplit_once('/').unwrap_or_default();
        if let Some(parent) = spec.pointer_mut(parent) {
            parent[name] = serde_json::from_str(value)?;
        }
        let (status, body) = request(&lab, "POST", "/services/create", Some(&spec.to_string()))?;
        ensure!(status == 400 && body.starts_with("{\"message\":\""), "{place} {value}: {status} {body}");
    }
    let long = json!({"Name": "a".repeat(64 << 10), "TaskTemplate": {"ContainerSpec": {"Image": "whoami"}}});
    ensure!(request(&lab, "POST", "/services/create", Some(&long.to_string()))?.0 == 400, "a name of 64 KiB");
    for path in ["//services", "/%2e%2e/services", "/v1.41/../services", "/services/%00", "/services/..%2f.."] {
        let answer = raw(&lab, format!("GET {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n").as_bytes())?;
        ensure!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
    let create = "POST /services/create HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n";
    let smuggled = "0\r\n\r\nGET /info HTTP/1.1\r\nHost: docker\r\n\r\n";
    for (request, status) in [
        ("GET /_ping HTTP/1.1\r\nHost: d\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd".to_owned(), "400"),
        ("GET /_ping HTTP/1.1\r\nHost : d\r\n\r\n".into(), "400"),
        ("GET /_ping\r\n\r\n".into(), "400"),
        ("\u{16}\u{3}\u{1}\u{2}".into(), "400"),
        (format!("GET /_ping HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(600_000)), "431"),
        (format!("{create}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{smuggled}"), "400"),
        (format!("{create}Transfer-Encoding: chunked\r\n\r\n5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(200_000)), "400"),
    ] {
        let answer = raw(&lab, request.as_bytes())?;
        let shown = &request[..request.len().min(80)];
        ensure!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?}: {answer}");
    }
    ensure!(request(&lab, "GET", "/_ping", None)? == (200, "OK".into()), "it is there no more");
    ensure!(request(&lab, "GET", "/services", None)?.1.trim() == "[]", "something was made");
    Ok(())
}
