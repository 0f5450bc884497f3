//! Volumes that are more than directories: what their driver's options ask for is mounted, shared, and gone after the last task.

use super::{SOON, explained, running};
use anyhow::{Context, Result, ensure};
use skep_kit::{Lab, LabOptions, eventually, need_root};
use std::fs;
use std::path::PathBuf;

/// The volume's directory, as skepd sees it.
fn data(lab: &Lab, volume: &str) -> Result<PathBuf> {
    let pid = lab.skepd_pid().context("skepd runs")?;
    let path = lab.data_dir().join("agent/volumes").join(volume).join("_data");
    Ok(PathBuf::from(format!("/proc/{pid}/root{}", path.display())))
}

fn is_mounted(lab: &Lab, volume: &str) -> Result<bool> {
    let pid = lab.skepd_pid().context("skepd runs")?;
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    Ok(mounts.contains(&format!("agent/volumes/{volume}/_data ")))
}

/// The container's line of `/proc/mounts` for this path.
fn mount_of(lab: &Lab, port: u16, path: &str) -> Result<String> {
    let mounts = lab.curl(&format!("http://{}:{port}/file?/proc/mounts", Lab::HOST))?;
    let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(path));
    Ok(line.with_context(|| format!("{path} is not mounted: {mounts}"))?.to_owned())
}

fn create(lab: &Lab, name: &str, mount: &str, flags: &[&str]) -> Result<String> {
    lab.ctl(&[&["service", "create", "--name", name, "--mount", mount], flags, &["whoami"]].concat())?.success()
}

#[test]
fn a_volume_with_options_of_its_driver_is_mounted_for_its_tasks_and_gone_after_the_last() -> Result<()> {
    if !need_root("volumes with options") {
        return Ok(());
    }
    let mut lab = Lab::swarm(LabOptions::default())?;
    let small = "type=volume,source=small,target=/d,volume-opt=type=tmpfs,volume-opt=device=tmpfs,volume-opt=o=size=1m";
    create(&lab, "two", small, &["-q", "--replicas", "2", "--publish", "8080:8080"])?;
    ensure!(mount_of(&lab, 8080, "/d")?.contains("size=1024k"), "{}", mount_of(&lab, 8080, "/d")?);
    // It is one for both tasks, and small.
    fs::write(data(&lab, "small")?.join("hello"), "hello\n")?;
    for _ in 0..6 {
        let said = lab.curl(&format!("http://{}:8080/file?/d/hello", Lab::HOST))?;
        ensure!(said.contains("hello"), "{said}");
    }
    let full = fs::write(data(&lab, "small")?.join("large"), vec![0; 2 << 20]);
    ensure!(full.is_err_and(|error| error.kind() == std::io::ErrorKind::StorageFull), "two MiB fitted in");
    fs::remove_file(data(&lab, "small")?.join("large"))?;
    // Who comes later gets what is there, also by the name alone and after the daemon was killed; other options are refused.
    lab.kill_skepd();
    lab.start_skepd()?;
    eventually(SOON, "a third one shares it", || {
        create(&lab, "third", "type=volume,source=small,target=/d", &["-q", "--publish", "8081:8080"])
    })?;
    let said = lab.curl(&format!("http://{}:8081/file?/d/hello", Lab::HOST))?;
    ensure!(said.contains("hello"), "{said}");
    create(&lab, "large", &small.replace("1m", "2m"), &["-d", "--restart-condition", "none"])?;
    explained(&lab, &["service", "large"], &["volume small is in use on this node with other driver options"])?;

    lab.ctl(&["service", "scale", "-q", "two=0"])?.success()?;
    eventually(SOON, "two have gone", || {
        ensure!(running(&lab, "two")? == 0);
        Ok(())
    })?;
    ensure!(is_mounted(&lab, "small")?, "it was taken from the third one");
    lab.ctl(&["service", "rm", "two", "third", "large"])?.success()?;
    eventually(SOON, "it is unmounted", || {
        ensure!(!is_mounted(&lab, "small")? && !data(&lab, "small")?.join("hello").exists());
        Ok(())
    })
}

#[test]
fn a_volume_may_be_a_directory_of_the_host_and_what_cannot_be_mounted_says_why() -> Result<()> {
    if !need_root("volumes of other file systems") {
        return Ok(());
    }
    let lab = Lab::swarm(LabOptions::default())?;
    let export = lab.dir().join("export");
    fs::create_dir(&export)?;
    fs::write(export.join("hello"), "hello\n")?;
    let bind =
        format!("type=volume,source=export,target=/d,volume-opt=type=none,\"volume-opt=o=bind,ro\",volume-opt=device={}", export.display());
    create(&lab, "bind", &bind, &["-q", "--publish", "8080:8080"])?;
    ensure!(lab.curl(&format!("http://{}:8080/file?/d/hello", Lab::HOST))?.contains("hello"));
    let line = mount_of(&lab, 8080, "/d")?;
    ensure!(line.split(' ').nth(3).is_some_and(|options| options.starts_with("ro")), "{line}");

    for (name, options, words) in [
        // Without that file system in the kernel, or without that server: the error tells what was tried.
        (
            "nfs",
            "volume-opt=type=nfs,volume-opt=device=:/export,\"volume-opt=o=addr=127.0.0.1,soft,timeo=1,retrans=1\"",
            &["could not mount volume nfs (type nfs, device :/export)"][..],
        ),
        (
            "cifs",
            "volume-opt=type=cifs,volume-opt=device=//127.0.0.1/share,\"volume-opt=o=username=me,password=hunter2\"",
            &["could not mount volume cifs (type cifs, device //127.0.0.1/share)"],
        ),
        (
            "lost",
            "volume-opt=type=nfs,volume-opt=device=no-such-server.invalid:/export",
            &["names the server \"no-such-server.invalid\", which this node cannot resolve"],
        ),
        (
            "gone",
            "volume-opt=type=none,volume-opt=o=bind,volume-opt=device=/no/such/dir",
            &["(type none, device /no/such/dir)", "No such file"],
        ),
        ("odd", "volume-opt=typ=nfs", &["volume option \"typ\" is not known"]),
        ("half", "volume-opt=type=nfs", &["volume option type wants device"]),
    ] {
        let mount = format!("type=volume,source={name},target=/d,{options}");
        create(&lab, name, &mount, &["-d", "--restart-condition", "none"])?;
        explained(&lab, &["service", name], words)?;
        let errors = lab.ctl(&["service", "ps", name, "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}"])?.success()?;
        ensure!(errors.starts_with("Rejected") && !errors.contains("hunter2"), "{errors}");
    }
    lab.ctl(&["service", "rm", "bind"])?.success()?;
    eventually(SOON, "it is unmounted", || {
        ensure!(!is_mounted(&lab, "export")?);
        Ok(())
    })?;
    ensure!(fs::read_to_string(export.join("hello"))? == "hello\n", "the directory of the host was changed");
    Ok(())
}
