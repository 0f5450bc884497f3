//! The same specs to us and to Debian's dockerd 20.10: the same status, and the same spec read back, with and without defaults.

use crate::support::request_at;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use skep_kit::{Scenario, need_dockerd};

/// The newest version that 20.10 speaks.
const VERSION: &str = "/v1.41";

/// One of the two daemons, with objects that specs may name.
struct Side {
    socket: String,
    /// What stands for an id in specs, and this daemon's id.
    ids: Vec<(&'static str, String)>,
}

impl Side {
    fn new(socket: String) -> Result<Self> {
        let mut side = Self { socket, ids: Vec::new() };
        for (mark, name) in [("@back", "back"), ("@old", "old")] {
            side.ask("POST", "/networks/create", Some(&json!({"Name": name, "Driver": "overlay", "Attachable": true})), 201)?;
            let id = side.ask("GET", &format!("/networks/{name}"), None, 200)?["Id"].clone();
            side.ids.push((mark, id.as_str().context("no id")?.to_owned()));
        }
        for (mark, kind) in [("@secret", "secrets"), ("@config", "configs")] {
            let made = side.ask("POST", &format!("/{kind}/create"), Some(&json!({"Name": "x1", "Labels": {}, "Data": "aGk="})), 201)?;
            side.ids.push((mark, made["ID"].as_str().context("no id")?.to_owned()));
        }
        Ok(side)
    }

    fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, String)> {
        request_at(&self.socket, method, &format!("{VERSION}{path}"), body.map(ToString::to_string).as_deref())
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>, wanted: u16) -> Result<Value> {
        let (status, text) = self.request(method, path, body)?;
        ensure!(status == wanted, "{}: {method} {path}: {status} {text}", self.socket);
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// The spec as it is read back, and with defaults, ids marked again; a refusal is its status alone.
    fn outcome(&self, spec: &Value) -> Result<Result<(Value, Value), (u16, String)>> {
        let text = self.ids.iter().fold(spec.to_string(), |text, (mark, id)| text.replace(mark, id));
        let (status, answer) = self.request("POST", "/services/create", Some(&serde_json::from_str(&text)?))?;
        if status != 201 {
            return Ok(Err((status, answer)));
        }
        let created: Value = serde_json::from_str(&answer)?;
        let path = format!("/services/{}", created["ID"].as_str().context("no id")?);
        let read = |query: &str| -> Result<Value> {
            let spec = self.ask("GET", &format!("{path}{query}"), None, 200)?["Spec"].to_string();
            let marked = self.ids.iter().fold(spec, |text, (mark, id)| text.replace(id.as_str(), mark));
            Ok(serde_json::from_str(&marked)?)
        };
        let seen = (read("")?, read("?insertDefaults=true")?);
        self.ask("DELETE", &path, None, 200)?;
        Ok(Ok(seen))
    }
}

fn full() -> Value {
    json!({
        "Name": "web", "Labels": {"tier": "front"},
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "nginx:1.27", "Labels": {"a": "b"}, "Command": ["/x", "--"], "Args": ["nginx"], "Hostname": "{{.Node.Hostname}}",
                "Env": ["A=1", "B="], "Dir": "/srv", "User": "1000:50", "Groups": ["44"], "Init": false, "StopSignal": "SIGQUIT",
                "Privileges": {"SELinuxContext": {"Disable": true, "User": "u", "Role": "r", "Type": "t", "Level": "l"}},
                "TTY": true, "OpenStdin": true, "ReadOnly": true, "StopGracePeriod": 0,
                "Mounts": [
                    {
                        "Type": "bind", "Source": "/etc", "Target": "/host", "ReadOnly": true,
                        "BindOptions": {"Propagation": "rslave", "NonRecursive": true}
                    },
                    {
                        "Type": "volume", "Source": "data", "Target": "/data",
                        "VolumeOptions": {"NoCopy": true, "Labels": {"x": "y"}, "DriverConfig": {"Name": "local", "Options": {"type": "nfs"}}}
                    },
                    {"Type": "tmpfs", "Target": "/tmp", "TmpfsOptions": {"SizeBytes": 65536, "Mode": 1023}},
                    {"Source": "/etc", "Target": "/c"}
                ],
                "Healthcheck": {"Test": ["CMD-SHELL", "x"], "Interval": 1000000000, "Timeout": 2000000000, "StartPeriod": 3000000, "Retries": 7},
                "Hosts": ["10.0.0.1 db database"],
                "DNSConfig": {"Nameservers": ["8.8.8.8"], "Search": ["e.org"], "Options": ["ndots:2"]},
                "Secrets": [{"File": {"Name": "p", "UID": "0", "GID": "0", "Mode": 292}, "SecretID": "@secret", "SecretName": "x1"}],
                "Configs": [{"File": {"Name": "/m", "UID": "5", "GID": "6", "Mode": 256}, "ConfigID": "@config", "ConfigName": "x1"}],
                "Sysctls": {"net.core.somaxconn": "1024"}, "CapabilityAdd": ["CAP_NET_ADMIN"], "CapabilityDrop": ["ALL"],
                "Ulimits": [{"Name": "nofile", "Hard": 200, "Soft": 100}]
            },
            "Resources": {
                "Limits": {"NanoCPUs": 500000000, "MemoryBytes": 67108864, "Pids": 100},
                "Reservations": {
                    "NanoCPUs": 250000000, "MemoryBytes": 33554432,
                    "GenericResources": [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 2}}]
                }
            },
            "RestartPolicy": {"Condition": "on-failure", "Delay": 5000000000u64, "MaxAttempts": 3, "Window": 60000000000u64},
            "Placement": {
                "Constraints": ["node.role==worker"], "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.rack"}}],
                "MaxReplicas": 2, "Platforms": [{"Architecture": "amd64", "OS": "linux"}, {"OS": "linux"}]
            },
            "Networks": [{"Target": "back", "Aliases": ["web", "www"], "DriverOpts": {"k": "v"}}],
            "LogDriver": {"Name": "json-file", "Options": {"max-size": "10m"}}, "ForceUpdate": 4, "Runtime": "container"
        },
        "Mode": {"Replicated": {"Replicas": 0}},
        "UpdateConfig": {
            "Parallelism": 0, "Delay": 1000000000, "FailureAction": "rollback", "Monitor": 15000000000u64, "MaxFailureRatio": 0.1,
            "Order": "start-first"
        },
        "RollbackConfig": {"Parallelism": 3, "Delay": 1, "FailureAction": "continue", "Monitor": 2, "MaxFailureRatio": 1, "Order": "stop-first"},
        "EndpointSpec": {
            "Mode": "vip",
            "Ports": [
                {"Name": "http", "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"},
                {"Protocol": "udp", "TargetPort": 81, "PublishMode": "host"}, {"TargetPort": 82}
            ]
        }
    })
}

/// The least spec, of an image that needs no pull, with a value at each of these places.
fn with(places: &[(&str, Value)]) -> Value {
    let mut spec = json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "whoami:latest"}}});
    for (place, value) in places {
        let (parent, name) = place.rsplit_once('/').unwrap_or(("", place));
        let parent = spec.pointer_mut(parent).unwrap_or_else(|| panic!("there is no {parent:?}"));
        parent[name] = value.clone();
    }
    spec
}

/// Specs, and the status that both answer.
fn cases() -> Vec<(u16, Value)> {
    let (task, container) = ("/TaskTemplate", "/TaskTemplate/ContainerSpec");
    let in_task = |name: &str, value: Value| with(&[(&format!("{task}/{name}"), value)]);
    let in_container = |name: &str, value: Value| with(&[(&format!("{container}/{name}"), value)]);
    let secret =
        |id: &str, name: &str| json!([{"File": {"Name": "p", "UID": "0", "GID": "0", "Mode": 292}, "SecretID": id, "SecretName": name}]);
    let empties = [
        ("/TaskTemplate/Resources", json!({})),
        ("/TaskTemplate/RestartPolicy", json!({})),
        ("/TaskTemplate/Placement", json!({})),
        ("/TaskTemplate/LogDriver", json!({})),
        ("/TaskTemplate/ContainerSpec/Privileges", json!({})),
        ("/TaskTemplate/ContainerSpec/DNSConfig", json!({})),
        ("/TaskTemplate/ContainerSpec/Healthcheck", json!({})),
        ("/UpdateConfig", json!({})),
        ("/EndpointSpec", json!({})),
        ("/Mode", json!({})),
    ];
    let tmpfs = json!({"Type": "tmpfs", "Target": "/x"});
    vec![
        (201, full()),
        (201, with(&[])),
        (201, with(&empties)),
        (201, in_task("Resources", json!({"Limits": {"MemoryBytes": 67108864}}))),
        (201, in_task("Resources", json!({"Reservations": {"NanoCPUs": 5000000}}))),
        (201, in_task("Resources", json!({"Limits": {"Pids": 5}}))),
        (201, with(&[("/Mode", json!({"Global": {}}))])),
        (201, with(&[("/Mode", json!({"Replicated": {}}))])),
        (201, with(&[("/EndpointSpec", json!({"Mode": "dnsrr"}))])),
        (201, with(&[("/EndpointSpec", json!({"Ports": [{"TargetPort": 80}]}))])),
        (201, with(&[("/Networks", json!([{"Target": "old", "Aliases": ["x"]}]))])),
        (201, in_task("Networks", json!([{"Target": "back"}]))),
        (201, in_container("Isolation", json!("hyperv"))),
        (201, in_container("Secrets", secret("@secret", "x1"))),
        (400, with(&[("/Mode", json!({"Global": {}, "Replicated": {}}))])),
        (400, with(&[("/EndpointSpec", json!({"Mode": "dnsrr", "Ports": [{"TargetPort": 80}]}))])),
        (400, with(&[("/Mode", json!({"GlobalJob": {}})), ("/UpdateConfig", json!({"Parallelism": 1}))])),
        (400, with(&[("/Name", json!("a.b"))])),
        (400, with(&[("/UpdateConfig", json!({"Order": "x"}))])),
        (400, with(&[("/UpdateConfig", json!({"MaxFailureRatio": 2}))])),
        (400, with(&[("/UpdateConfig", json!({"Delay": -1}))])),
        (400, in_container("Mounts", json!([{"Type": "floppy", "Target": "/x"}]))),
        (400, in_container("Mounts", json!([tmpfs, tmpfs]))),
        (400, in_container("Secrets", secret("nothing", "nothing"))),
        (400, in_container("Secrets", json!([{"SecretID": "@secret", "SecretName": "x1"}]))),
        (400, in_container("Image", json!(""))),
        (400, in_task("RestartPolicy", json!({"Condition": "x"}))),
        (400, in_task("Resources", json!({"Limits": {"MemoryBytes": 1}}))),
        (400, json!({"Name": "web", "TaskTemplate": {"Runtime": "container"}})),
        (400, json!([])),
        (400, json!({"Name": 5})),
    ]
}

/// What 20.10 has not: whether privileges may be gained is told since 25.
fn without_news(mut spec: Value) -> Value {
    if let Some(privileges) = spec.pointer_mut("/TaskTemplate/ContainerSpec/Privileges").and_then(Value::as_object_mut) {
        privileges.remove("NoNewPrivileges");
    }
    spec
}

#[test]
fn what_is_written_is_read_as_from_a_genuine_dockerd() -> Result<()> {
    Scenario::new("the same services as dockerd", 1, 0).long().run(|cluster| {
        if !need_dockerd("the same services as dockerd") {
            return Ok(());
        }
        let peer = cluster.add_dockerd()?;
        peer.docker(&["swarm", "init", "--advertise-addr", peer.address()])?.success()?;
        let ours = Side::new(cluster[0].run_dir().join("docker.sock").to_string_lossy().into_owned())?;
        let theirs = Side::new(peer.socket().to_owned())?;
        for (status, spec) in cases() {
            let (here, there) = (ours.outcome(&spec)?, theirs.outcome(&spec)?);
            match (here, there) {
                (Ok(here), Ok(there)) => {
                    ensure!(status == 201, "{spec}: created by both");
                    ensure!(without_news(here.0.clone()) == there.0, "{spec}: {} here, {} there", here.0, there.0);
                    ensure!(without_news(here.1.clone()) == there.1, "{spec} with defaults: {} here, {} there", here.1, there.1);
                }
                (Err(here), Err(there)) => ensure!(here.0 == status && there.0 == status, "{spec}: {here:?} here, {there:?} there"),
                (here, there) => anyhow::bail!("{spec}: {here:?} here, {there:?} there"),
            }
        }
        Ok(())
    })
}
