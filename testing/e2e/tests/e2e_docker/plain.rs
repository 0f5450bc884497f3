//! `docker run -p` with ranges, `docker cp` and `docker diff` of containers that do not run.

use crate::box_image::load;
use crate::support::{docker, inspect, lab, ok};
use anyhow::{Context as _, Result, ensure};
use skep_kit::Host;
use std::fs;

/// The port of this node that a container got for one of its own.
fn published(on: &Host, name: &str, port: &str) -> Result<String> {
    let found = inspect(on, &["inspect", name])?;
    let one = &found["NetworkSettings"]["Ports"][port][0]["HostPort"];
    Ok(one.as_str().with_context(|| found["NetworkSettings"]["Ports"].to_string())?.to_owned())
}

#[test]
fn a_range_of_ports_gives_the_first_that_is_free() -> Result<()> {
    let Some(lab) = lab("docker run -p FIRST-LAST:PORT")? else { return Ok(()) };
    load(&lab)?;
    let start = |name: &str, port: &str| docker(&lab, &["run", "-d", "--name", name, "-p", port, "box:1", "sleep", "100000"]);
    for (name, number) in [("aa", "8000"), ("bb", "8001")] {
        start(name, "8000-8002:80")?.success()?;
        ensure!(published(&lab, name, "80/tcp")? == number, "{name}");
    }
    let asked = inspect(&lab, &["inspect", "aa"])?["HostConfig"]["PortBindings"]["80/tcp"][0]["HostPort"].clone();
    ensure!(asked == "8000-8002", "{asked}");
    start("cc", "8002:80")?.success()?;
    let refused = start("dd", "8000-8002:80")?;
    ensure!(refused.status != 0 && refused.stderr.contains("8000-8002/tcp") && refused.stderr.contains("another range"), "{refused:?}");
    // UDP has ports of its own, and pairs are pairs.
    start("uu", "8000-8002:80/udp")?.success()?;
    ensure!(published(&lab, "uu", "80/udp")? == "8000");
    start("pp", "8100-8102:80-82")?.success()?;
    for (inner, outer) in [("80/tcp", "8100"), ("81/tcp", "8101"), ("82/tcp", "8102")] {
        ensure!(published(&lab, "pp", inner)? == outer, "{inner}");
    }
    // What a life had is not kept for the next.
    ok(&lab, &["stop", "-t", "0", "bb"])?;
    ok(&lab, &["rm", "-f", "dd"])?;
    start("ee", "8000-8002:80")?.success()?;
    ensure!(published(&lab, "ee", "80/tcp")? == "8001");
    ensure!(docker(&lab, &["start", "bb"])?.stderr.contains("8000-8002/tcp"));
    ok(&lab, &["rm", "-f", "aa"])?;
    ok(&lab, &["start", "bb"])?;
    ensure!(published(&lab, "bb", "80/tcp")? == "8000");
    let backwards = start("xx", "8002-8000:80")?;
    ensure!(backwards.status != 0, "{backwards:?}");
    ok(&lab, &["rm", "-f", "-v", "bb", "cc", "ee", "uu", "pp"])?;
    Ok(())
}

#[test]
fn files_go_into_a_container_that_does_not_run_and_come_out_of_it() -> Result<()> {
    let Some(lab) = lab("docker cp, docker diff of what does not run")? else { return Ok(()) };
    load(&lab)?;
    let here = lab.dir().join("files");
    fs::create_dir_all(&here)?;
    fs::write(here.join("in"), "carried in\n")?;
    let text = |name: &str| here.join(name).to_string_lossy().into_owned();
    ok(
        &lab,
        &[
            "create",
            "--name",
            "cc",
            "-v",
            "vol:/data",
            "box:1",
            "sh",
            "-c",
            "cat /tmp/in /data/in; echo out > /tmp/out; echo v > /data/out",
        ],
    )?;
    // Before its first life: beside its files and into its volume, also where nothing is mounted yet.
    for target in ["cc:/tmp/in", "cc:/data/in"] {
        ok(&lab, &["cp", &text("in"), target])?;
    }
    let changed = ok(&lab, &["diff", "cc"])?;
    ensure!(changed.lines().any(|line| line == "A /tmp/in") && !changed.contains("/data/in"), "{changed}");
    ensure!(lab.data_dir().join("agent/volumes/vol/_data/in").exists(), "the volume was not mounted");
    ensure!(ok(&lab, &["start", "-a", "cc"])? == "carried in\ncarried in\n");
    // After its end.
    for (from, to) in [("cc:/tmp/out", "out"), ("cc:/data/out", "data")] {
        ok(&lab, &["cp", from, &text(to)])?;
    }
    ensure!(fs::read_to_string(here.join("out"))? == "out\n" && fs::read_to_string(here.join("data"))? == "v\n");
    ensure!(ok(&lab, &["diff", "cc"])?.contains("A /tmp/out"));
    ensure!(docker(&lab, &["cp", "cc:/none", &text("none")])?.stderr.contains("Could not find the file /none"));
    // A link of the container's leads into the container.
    std::os::unix::fs::symlink("/etc", here.join("link"))?;
    ok(&lab, &["cp", &text("link"), "cc:/tmp/link"])?;
    ok(&lab, &["cp", &text("in"), "cc:/tmp/link/skep-e2e-stolen"])?;
    ensure!(!std::path::Path::new("/etc/skep-e2e-stolen").exists(), "a link led out");
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    ensure!(!mounts.contains(&*lab.run_dir().join("files").to_string_lossy()), "something is left mounted");
    ok(&lab, &["start", "-a", "cc"])?;
    ok(&lab, &["rm", "-v", "cc"])?;
    ok(&lab, &["volume", "rm", "vol"])?;
    Ok(())
}
