use super::*;
use crate::{ImageSettings, NetworkWish, RestartWish};
use skep_types::MountType;

fn image() -> Image {
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let config = ImageSettings {
        entrypoint: words(&["/entry"]),
        command: words(&["serve"]),
        labels: [("a".to_owned(), "image".to_owned()), ("b".to_owned(), "image".to_owned())].into(),
        ..ImageSettings::default()
    };
    Image { id: "sha256:aa".into(), tags: words(&["box:1"]), config, ..Image::default() }
}

fn made(body: serde_json::Value) -> Result<NewContainer, ApiError> {
    let body = crate::body::from_value(body).unwrap();
    wish(body, &image(), "web".into())
}

/// As the client 28 sends it for `docker run box:1`.
#[test]
fn what_clients_send_for_nothing_is_nothing() {
    let host: serde_json::Value = serde_json::from_str(
        r#"{
        "Binds": null, "ContainerIDFile": "", "LogConfig": { "Type": "", "Config": {} }, "NetworkMode": "default", "PortBindings": {},
        "RestartPolicy": { "Name": "no", "MaximumRetryCount": 0 }, "AutoRemove": true, "VolumeDriver": "", "VolumesFrom": null,
        "ConsoleSize": [24, 80], "CapAdd": null, "CapDrop": null, "CgroupnsMode": "", "Dns": [], "DnsOptions": [], "DnsSearch": [],
        "ExtraHosts": null, "GroupAdd": null, "IpcMode": "", "Cgroup": "", "Links": null, "OomScoreAdj": 0, "PidMode": "",
        "Privileged": false, "PublishAllPorts": false, "ReadonlyRootfs": false, "SecurityOpt": null, "UTSMode": "", "UsernsMode": "",
        "ShmSize": 0, "Isolation": "", "CpuShares": 0, "Memory": 0, "NanoCpus": 0, "CgroupParent": "", "BlkioWeight": 0,
        "BlkioWeightDevice": [], "BlkioDeviceReadBps": [], "CpuPeriod": 0, "CpuQuota": 0, "CpusetCpus": "", "Devices": [],
        "DeviceCgroupRules": null, "DeviceRequests": null, "MemoryReservation": 0, "MemorySwap": 0, "MemorySwappiness": -1,
        "OomKillDisable": false, "PidsLimit": 0, "Ulimits": [], "CpuCount": 0, "CpuPercent": 0, "IOMaximumIOps": 0,
        "MaskedPaths": null, "ReadonlyPaths": null
        }"#,
    )
    .unwrap();
    let networks = json!({ "EndpointsConfig": { "default": {
        "IPAMConfig": null, "Links": null, "Aliases": null, "MacAddress": "", "DriverOpts": null, "GwPriority": 0,
        "NetworkID": "", "EndpointID": "", "Gateway": "", "IPAddress": "", "DNSNames": null,
    } } });
    let body = json!({
        "Hostname": "", "Domainname": "", "User": "", "AttachStdout": true, "Tty": false, "Env": null, "Cmd": null, "Image": "box:1",
        "Volumes": {}, "WorkingDir": "", "Entrypoint": null, "OnBuild": null, "Labels": { "a": "mine" }, "HostConfig": host,
        "NetworkingConfig": networks,
    });
    let made = made(body).unwrap();
    assert!(made.auto_remove && made.restart == RestartWish::Never && made.network == NetworkWish::Own && made.ports.is_empty());
    assert_eq!((made.reference.as_str(), made.spec.command.len(), made.spec.args.len()), ("box:1", 0, 0));
    assert_eq!((made.spec.labels["a"].as_str(), made.spec.labels["b"].as_str()), ("mine", "image"));
    assert!(made.resources == Default::default() && made.log_driver.is_none() && made.spec.mounts.is_empty());
}

#[test]
fn entrypoint_and_command_are_put_together_as_dockerd_does() {
    let command = |more: serde_json::Value| {
        let mut body = json!({ "Image": "box:1" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        made(body).map(|made| (made.spec.command.join(" "), made.spec.args.join(" ")))
    };
    let words = |command: &str, args: &str| (command.to_owned(), args.to_owned());
    assert_eq!(command(json!({ "Cmd": ["a", "b"] })).unwrap(), words("", "a b"));
    assert_eq!(command(json!({ "Cmd": "a" })).unwrap(), words("", "a"));
    assert_eq!(command(json!({ "Entrypoint": ["/x"] })).unwrap(), words("/x", ""));
    assert_eq!(command(json!({ "Entrypoint": ["/x"], "Cmd": ["a"] })).unwrap(), words("/x", "a"));
    assert_eq!(command(json!({ "Entrypoint": [""], "Cmd": ["a"] })).unwrap(), words("a", ""));
    assert_eq!(command(json!({ "Entrypoint": [] })).unwrap(), words("serve", ""));
    assert_eq!(command(json!({ "Entrypoint": [""] })).unwrap_err().message, "no command specified");
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    let refused = |host: serde_json::Value| made(json!({ "Image": "box:1", "HostConfig": host })).unwrap_err();
    for (host, name) in [
        (json!({ "Privileged": true }), "HostConfig.Privileged"),
        (json!({ "Devices": [{ "PathOnHost": "/dev/x" }] }), "HostConfig.Devices"),
        (json!({ "PidMode": "host" }), "HostConfig.PidMode"),
        (json!({ "CpuShares": 5 }), "HostConfig.CpuShares"),
        (json!({ "NetworkMode": "container:x" }), "HostConfig.NetworkMode"),
        (json!({ "SecurityOpt": ["no-new-privileges:false"] }), "HostConfig.SecurityOpt"),
        (json!({ "IpcMode": "host" }), "HostConfig.IpcMode"),
        (json!({ "blkioweight": 7 }), "HostConfig.BlkioWeight"),
    ] {
        let error = refused(host);
        assert!(error.status() == 501 && error.message.contains(name), "{name}: {error}");
    }
    assert_eq!(refused(json!({ "RestartPolicy": { "Name": "sometimes" } })).status(), 400);
    assert_eq!(refused(json!({ "AutoRemove": true, "RestartPolicy": { "Name": "always" } })).status(), 400);
    assert_eq!(refused(json!({ "Memory": 10, "MemorySwap": 5 })).status(), 400);
}

#[test]
fn limits_mounts_and_ports_are_taken_over() {
    let host = json!({
        "Binds": ["/a:/b", "data:/c:ro"], "Tmpfs": { "/run": "size=1m" }, "ShmSize": 1 << 20, "NetworkMode": "bridge",
        "PortBindings": { "80/tcp": [{ "HostPort": "8080" }] }, "Memory": 1 << 30, "MemorySwap": -1, "CpuQuota": 50_000,
        "RestartPolicy": { "Name": "on-failure", "MaximumRetryCount": 3 }, "ExtraHosts": ["x:1.2.3.4"], "PidsLimit": 9,
        "SecurityOpt": ["no-new-privileges"], "LogConfig": { "Type": "none" },
    });
    let made = made(json!({ "Image": "box:1", "HostConfig": host, "Volumes": { "/b": {}, "/d": {} }, "StopTimeout": 3 })).unwrap();
    let kinds: Vec<(MountType, &str)> = made.spec.mounts.iter().map(|mount| (mount.kind, mount.target.as_str())).collect();
    let (bind, volume, tmpfs) = (MountType::Bind, MountType::Volume, MountType::Tmpfs);
    assert_eq!(kinds, [(bind, "/b"), (volume, "/c"), (tmpfs, "/run"), (tmpfs, "/dev/shm"), (volume, "/d")]);
    assert_eq!((made.resources.limits.nano_cpus, made.resources.swap_bytes), (500_000_000, Some(-1)));
    assert_eq!((made.ports[0].port.published_port, made.spec.pids_limit), (8080, 9));
    assert_eq!(made.restart, RestartWish::OnFailure { at_most: 3 });
    assert_eq!((made.spec.hosts[0].as_str(), made.log_driver.unwrap().name.as_str()), ("1.2.3.4 x", "none"));
    assert_eq!(made.spec.stop_grace_period, Some(Duration::from_secs(3)));
    // What was asked for is read back.
    let asked: CreateBody = serde_json::from_str(&made.asked).unwrap();
    assert_eq!((asked.host_config.binds.len(), asked.host_config.memory_swap), (2, -1));
}
