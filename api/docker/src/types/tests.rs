//! What clients write is what they read back: Ansible and Terraform compare the two and would change a service for ever.

use super::service_spec::ServiceSpec;
use super::unsaid;
use crate::ApiError;
use crate::body::from_value;
use serde_json::{Value, json};
use skep_types::{Affinity, FieldError, PublishPlace, Service, ServiceId};
use std::sync::Arc;

/// Into the cluster's words.
fn wish(json: &Value) -> Result<skep_types::ServiceSpec, String> {
    let spec: ServiceSpec = from_value(json.clone()).map_err(|error: ApiError| error.message)?;
    spec.try_into().map_err(|error: FieldError| error.to_string())
}

/// And out of them again, as text: numbers are compared as clients see them.
fn shown(wish: &skep_types::ServiceSpec) -> Value {
    serde_json::from_slice(&serde_json::to_vec(&ServiceSpec::from(wish)).unwrap()).unwrap()
}

fn round(json: &Value) -> Value {
    shown(&wish(json).unwrap_or_else(|error| panic!("{error}: {json}")))
}

/// A service in which everything is said that `docker service create` can say, but for what excludes it.
fn full() -> Value {
    json!({
        "Name": "web",
        "Labels": {"tier": "front", "empty": ""},
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "nginx:1.27@sha256:0000000000000000000000000000000000000000000000000000000000000000",
                "Labels": {"a": "b"},
                "Command": ["/docker-entrypoint.sh", "--"],
                "Args": ["nginx", "-g", "daemon off;"],
                "Hostname": "{{.Node.Hostname}}",
                "Env": ["A=1", "B=", "C"],
                "Dir": "/srv",
                "User": "1000:50",
                "Groups": ["audio", "44"],
                "Privileges": {
                    "CredentialSpec": {"Config": "", "File": "gmsa.json", "Registry": ""},
                    "SELinuxContext": {"Disable": true, "User": "u", "Role": "r", "Type": "t", "Level": "s0:c1"},
                    "Seccomp": {"Mode": "custom", "Profile": "e30="},
                    "AppArmor": {"Mode": "disabled"},
                    "NoNewPrivileges": true
                },
                "Init": false,
                "StopSignal": "SIGQUIT",
                "TTY": true,
                "OpenStdin": true,
                "ReadOnly": true,
                "Mounts": [
                    {
                        "Type": "bind", "Source": "/etc", "Target": "/host", "ReadOnly": true, "Consistency": "cached",
                        "BindOptions": {
                            "Propagation": "rslave", "NonRecursive": true, "CreateMountpoint": true,
                            "ReadOnlyNonRecursive": true, "ReadOnlyForceRecursive": true
                        }
                    },
                    {
                        "Type": "volume", "Source": "data", "Target": "/data",
                        "VolumeOptions": {
                            "NoCopy": true, "Labels": {"x": "y"}, "Subpath": "in/it",
                            "DriverConfig": {"Name": "local", "Options": {"type": "nfs"}}
                        }
                    },
                    {
                        "Type": "tmpfs", "Target": "/tmp",
                        "TmpfsOptions": {"SizeBytes": 65536, "Mode": 1023, "Options": [["exec"], ["uid", "5"]]}
                    }
                ],
                "StopGracePeriod": 0,
                "Healthcheck": {
                    "Test": ["CMD-SHELL", "curl -f http://localhost"], "Interval": 1000000000u64, "Timeout": 2000000000u64,
                    "StartPeriod": 3000000000u64, "StartInterval": 4000000000u64, "Retries": 7
                },
                "Hosts": ["10.0.0.1 db database"],
                "DNSConfig": {"Nameservers": ["8.8.8.8"], "Search": ["example.org"], "Options": ["ndots:2"]},
                "Secrets": [
                    {"File": {"Name": "password", "UID": "0", "GID": "0", "Mode": 292}, "SecretID": "s1", "SecretName": "password-1"}
                ],
                "Configs": [
                    {"File": {"Name": "/motd", "UID": "5", "GID": "6", "Mode": 256}, "ConfigID": "c1", "ConfigName": "motd"},
                    {"Runtime": {}, "ConfigID": "c2", "ConfigName": "gmsa"}
                ],
                "Isolation": "process",
                "Sysctls": {"net.core.somaxconn": "1024"},
                "CapabilityAdd": ["CAP_NET_ADMIN"],
                "CapabilityDrop": ["ALL"],
                "Ulimits": [{"Name": "nofile", "Hard": 200, "Soft": 100}],
                "OomScoreAdj": -500
            },
            "Resources": {
                "Limits": {"NanoCPUs": 500000000u64, "MemoryBytes": 67108864u64, "Pids": 100},
                "Reservations": {
                    "NanoCPUs": 250000000u64, "MemoryBytes": 33554432u64,
                    "GenericResources": [
                        {"DiscreteResourceSpec": {"Kind": "gpu", "Value": 2}}, {"NamedResourceSpec": {"Kind": "fpga", "Value": "f1"}}
                    ]
                },
                "SwapBytes": -1,
                "MemorySwappiness": 60
            },
            "RestartPolicy": {"Condition": "on-failure", "Delay": 5000000000u64, "MaxAttempts": 3, "Window": 60000000000u64},
            "Placement": {
                "Constraints": ["node.role==worker"],
                "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.rack"}}],
                "MaxReplicas": 2,
                "Platforms": [{"Architecture": "amd64", "OS": "linux"}, {"OS": "linux"}]
            },
            "Networks": [{"Target": "n1", "Aliases": ["web", "www"], "DriverOpts": {"k": "v"}}],
            "LogDriver": {"Name": "json-file", "Options": {"max-size": "10m"}},
            "ForceUpdate": 4,
            "Runtime": "container"
        },
        "Mode": {"Replicated": {"Replicas": 0}},
        "UpdateConfig": {
            "Parallelism": 0, "Delay": 1000000000u64, "FailureAction": "rollback", "Monitor": 15000000000u64, "MaxFailureRatio": 0.1,
            "Order": "start-first"
        },
        "RollbackConfig": {
            "Parallelism": 3, "Delay": 1, "FailureAction": "continue", "Monitor": 2, "MaxFailureRatio": 1, "Order": "stop-first"
        },
        "Networks": [{"Target": "n2", "Aliases": ["old"]}],
        "EndpointSpec": {
            "Mode": "dnsrr",
            "Ports": [
                {"Name": "http", "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"},
                {"Protocol": "sctp", "TargetPort": 81, "PublishMode": "ingress"}
            ]
        }
    })
}

/// What `docker service create nginx` sends, and reads again; but that it sends the two halves of its resources, empty.
fn plain() -> Value {
    json!({
        "Name": "web",
        "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": {"Image": "nginx", "Init": false, "DNSConfig": {}, "Isolation": "default"},
            "Resources": {},
            "Placement": {},
            "ForceUpdate": 0,
            "Runtime": "container"
        },
        "Mode": {"Replicated": {"Replicas": 1}},
        "EndpointSpec": {"Mode": "vip"}
    })
}

#[test]
fn what_the_client_writes_is_what_it_reads() {
    assert_eq!(round(&plain()), plain());
    assert_eq!(round(&full()), full());
}

#[test]
fn what_is_never_said_is_shown_as_dockerd_shows_it() {
    let least =
        json!({"TaskTemplate": {"ContainerSpec": {"Image": "x", "Privileges": {}, "Mounts": [{"Target": "/a", "BindOptions": {}}]}}});
    let shown = json!({
        "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "x",
                "Isolation": "default",
                "Privileges": {"CredentialSpec": null, "SELinuxContext": null, "NoNewPrivileges": false},
                "Mounts": [{"Type": "bind", "Target": "/a", "BindOptions": {"Propagation": "rprivate"}}]
            },
            "ForceUpdate": 0,
            "Runtime": "container"
        },
        "Mode": {"Replicated": {"Replicas": 1}}
    });
    assert_eq!(round(&least), shown);
    let some = json!({
        "TaskTemplate": {"ContainerSpec": {"Image": "x"}, "RestartPolicy": {}},
        "UpdateConfig": {},
        "EndpointSpec": {"Ports": [{"TargetPort": 1}]}
    });
    let some = round(&some);
    assert_eq!(some["TaskTemplate"]["RestartPolicy"], json!({"Condition": "any", "MaxAttempts": 0}));
    let update = json!({"Parallelism": 0, "FailureAction": "pause", "MaxFailureRatio": 0, "Order": "stop-first"});
    assert_eq!(some["UpdateConfig"], update);
    let port = json!({"Protocol": "tcp", "TargetPort": 1, "PublishMode": "ingress"});
    assert_eq!(some["EndpointSpec"], json!({"Mode": "vip", "Ports": [port]}));
}

#[test]
fn every_way_of_a_choice_is_kept() {
    let mut json = plain();
    for mode in [
        json!({"Global": {}}),
        json!({"GlobalJob": {}}),
        json!({"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 7}}),
        json!({"Replicated": {"Replicas": 9}}),
    ] {
        json["Mode"] = mode;
        assert_eq!(round(&json), json);
    }
    json["Mode"] = json!({"ReplicatedJob": {"MaxConcurrent": 2}});
    assert_eq!(round(&json)["Mode"], json!({"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 2}}));
    let container = |field: &str, value: Value| {
        let mut json = plain();
        json["TaskTemplate"]["ContainerSpec"][field] = value;
        assert_eq!(round(&json), json);
    };
    for source in ["Config", "Registry"] {
        let mut credential = json!({"Config": "", "File": "", "Registry": ""});
        credential[source] = json!("it");
        container("Privileges", json!({"CredentialSpec": credential, "SELinuxContext": null, "NoNewPrivileges": false}));
    }
    for mode in ["default", "unconfined"] {
        let privileges = json!({"CredentialSpec": null, "SELinuxContext": null, "Seccomp": {"Mode": mode}, "NoNewPrivileges": false});
        container("Privileges", privileges);
    }
    for test in [json!(["NONE"]), json!(["CMD", "true"])] {
        container("Healthcheck", json!({ "Test": test }));
    }
    container("Healthcheck", json!({}));
    container(
        "Mounts",
        json!([{"Type": "cluster", "Source": "group:a", "Target": "/a"}, {"Type": "npipe", "Source": "a", "Target": "/b"}]),
    );
    let mut json = plain();
    for part in [
        json!({"Limits": {"Pids": 5}}),
        json!({"Limits": {"MemoryBytes": 5}}),
        json!({"Reservations": {"NanoCPUs": 5}}),
        json!({"SwapBytes": 5}),
    ] {
        json["TaskTemplate"]["Resources"] = part;
        assert_eq!(round(&json), json);
    }
    json["TaskTemplate"]["Resources"] = json!({"Limits": {}, "Reservations": {}});
    assert_eq!(round(&json)["TaskTemplate"]["Resources"], json!({}));
}

/// A path into JSON.
fn leaves(json: &Value, at: &str, out: &mut Vec<String>) {
    match json {
        Value::Object(fields) if !fields.is_empty() => fields.iter().for_each(|(name, value)| {
            leaves(value, &format!("{at}/{}", name.replace('/', "~1")), out);
        }),
        Value::Array(items) if !items.is_empty() => {
            items.iter().enumerate().for_each(|(index, value)| leaves(value, &format!("{at}/{index}"), out));
        }
        _ => out.push(at.to_owned()),
    }
}

#[test]
fn every_single_value_is_carried() {
    let mut paths = Vec::new();
    leaves(&full(), "", &mut paths);
    assert!(paths.len() > 110, "{}", paths.len());
    let words =
        ["Mode", "Condition", "FailureAction", "Order", "Type", "Propagation", "Consistency", "Isolation", "Protocol", "PublishMode"];
    for path in paths {
        let name = path.rsplit('/').next().unwrap_or_default();
        let mut json = full();
        let value = json.pointer_mut(&path).unwrap();
        *value = match value.clone() {
            // Sources of credentials exclude each other, kinds of mounts and configs are told by which part is there.
            Value::String(text) if path.contains("CredentialSpec") && text.is_empty() => continue,
            Value::String(_) if name == "Profile" => json!("e319"),
            Value::String(_) if name == "Runtime" => continue,
            Value::String(text) if words.contains(&name) => match next_word(&path, &text) {
                Some(word) => json!(word),
                None => continue,
            },
            Value::String(text) => json!(format!("{text}x")),
            Value::Bool(is) => json!(!is),
            Value::Number(number) => match number.as_i64() {
                Some(whole) if name == "MaxFailureRatio" => json!(whole as f32 / 4.0),
                Some(whole) => json!(whole + 1),
                None => json!(0.25),
            },
            _ => continue,
        };
        let (mut wanted, now) = (json.clone(), round(&json));
        // `false` and 0 are left out where Go leaves them out.
        if now.pointer(&path).is_none() && wanted.pointer(&path).is_some_and(|value| *value == json!(false) || *value == json!(0)) {
            remove(&mut wanted, &path);
        }
        assert_eq!(now, wanted, "{path}");
        assert_ne!(now, full(), "{path} makes no difference");
    }
}

fn remove(json: &mut Value, path: &str) {
    let (parent, name) = path.rsplit_once('/').unwrap();
    json.pointer_mut(parent).and_then(Value::as_object_mut).map(|fields| fields.remove(name));
}

/// Another word of the same kind; `None` where the kind is not free to change.
fn next_word(path: &str, word: &str) -> Option<&'static str> {
    Some(match (path.rsplit('/').nth(1)?, word) {
        (_, "on-failure") => "none",
        (_, "rollback" | "continue") => "pause",
        (_, "start-first") => "stop-first",
        (_, "stop-first") => "start-first",
        (_, "rslave") => "shared",
        (_, "cached") => "delegated",
        (_, "process") => "hyperv",
        (_, "tcp" | "sctp") => "udp",
        (_, "host") => "ingress",
        (_, "ingress") => "host",
        (_, "dnsrr") => "vip",
        ("AppArmor", _) => "default",
        ("SELinuxContext", _) => return None,
        _ => return None,
    })
}

#[test]
fn what_cannot_be_carried_is_refused_by_name() {
    let refused = |path: &str, value: Value, words: &str| {
        let mut json = full();
        *json.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = value;
        let error = wish(&json).unwrap_err();
        assert!(error.contains(words), "{path}: {error}");
    };
    let task = "/TaskTemplate";
    let container = "/TaskTemplate/ContainerSpec";
    refused("/Mode", json!({"Global": {}, "Replicated": {}}), "Mode: must specify only one service mode");
    refused(&format!("{container}/Mounts/0/Type"), json!("image"), "TaskTemplate.ContainerSpec.Mounts[0].Type: invalid MountType");
    refused(&format!("{container}/Mounts/0/Type"), json!("floppy"), "invalid MountType: \"floppy\"");
    refused(&format!("{container}/Mounts/0/BindOptions/Propagation"), json!("x"), "Mounts[0].BindOptions.Propagation");
    refused(&format!("{container}/Mounts/2/TmpfsOptions/Options"), json!([["a", "b", "c"]]), "Mounts[2].TmpfsOptions.Options[0]");
    refused(&format!("{container}/Mounts/2/TmpfsOptions/Options"), json!([["exec"], ["a,b"]]), "Options[1]: contains a comma");
    refused(&format!("{container}/Privileges/CredentialSpec/Config"), json!("x"), "CredentialSpec: has several sources");
    refused(&format!("{container}/Privileges/Seccomp/Mode"), json!("default"), "Seccomp.Profile: is used with Mode custom only");
    refused(&format!("{container}/Privileges/Seccomp/Profile"), json!("*"), "Profile: is not base64");
    refused(&format!("{container}/Privileges/AppArmor/Mode"), json!("x"), "AppArmor.Mode");
    refused(&format!("{container}/Configs/0"), json!({"File": {}, "Runtime": {}, "ConfigID": "c"}), "Configs[0].Runtime");
    refused(&format!("{container}/Secrets/0/SecretID"), json!(""), "Secrets[0].SecretID: the id is empty");
    refused(&format!("{container}/Healthcheck/Interval"), json!(-1), "Healthcheck.Interval: -1 is negative");
    refused(&format!("{container}/StopGracePeriod"), json!(-1), "StopGracePeriod: -1 is negative");
    refused(&format!("{task}/RestartPolicy/Condition"), json!("sometimes"), "TaskTemplate.RestartPolicy.Condition");
    refused(&format!("{task}/RestartPolicy/Delay"), json!(-1), "RestartPolicy.Delay");
    refused(&format!("{task}/Placement/Preferences"), json!([{}]), "Placement.Preferences[0].Spread");
    refused(&format!("{task}/Runtime"), json!("plugin"), "TaskTemplate.PluginSpec");
    refused(&format!("{task}/ContainerSpec"), json!(null), "TaskTemplate.ContainerSpec: is missing");
    refused("/UpdateConfig/Order", json!("x"), "UpdateConfig.Order");
    refused("/RollbackConfig/FailureAction", json!("x"), "RollbackConfig.FailureAction");
    refused("/EndpointSpec/Mode", json!("x"), "EndpointSpec.Mode");
    refused("/EndpointSpec/Ports/1/Protocol", json!("x"), "EndpointSpec.Ports[1].Protocol");
    let reserved = format!("{task}/Resources/Reservations/GenericResources/0");
    refused(&reserved, json!({}), "Resources.Reservations.GenericResources[0]");
}

#[test]
fn what_has_no_words_here_stays_as_it_is() {
    let mut known = wish(&full()).unwrap();
    let port = &mut known.endpoint.as_mut().unwrap().ports[1];
    port.place = PublishPlace::Interface("eth1".into());
    port.affinity = Affinity::Source;
    port.allow = vec!["10.0.0.0/8".parse().unwrap()];
    Arc::make_mut(&mut known.task).networks[0].addresses = vec!["10.0.0.9".into()];
    known.annotations.indices = vec![("i".into(), "j".into())];
    let service = Service::new(ServiceId::for_test(1), known);
    let mut same = wish(&shown(&service.spec)).unwrap();
    assert_ne!(same, service.spec);
    unsaid::keep(&mut same, &service);
    assert_eq!(same, service.spec);

    // Nothing asked for is nothing asked for, in which words ever.
    Arc::make_mut(&mut same.task).resources = None;
    let mut empty = service.clone();
    Arc::make_mut(&mut empty.spec.task).resources = Some(Default::default());
    unsaid::keep(&mut same, &empty);
    assert_eq!(same.task.resources, empty.spec.task.resources);

    // A port that was changed is another port.
    let mut json = shown(&service.spec);
    json["EndpointSpec"]["Ports"][1]["TargetPort"] = json!(82);
    let mut changed = wish(&json).unwrap();
    unsaid::keep(&mut changed, &service);
    assert!(changed.endpoint.unwrap().ports[1].allow.is_empty());
}
