//! `swarmctl task cp`, `top`, `port-forward` and `exec -it`, of a task on another node.

use crate::support::SOON;
use anyhow::{Context as _, Result, ensure};
use skep_kit::{Host, Output, binary, eventually, run};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// swarmctl that goes on until it is dropped.
struct Going(Child);

impl Drop for Going {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

fn swarmctl(on: &Host) -> Result<String> {
    Ok(format!("{} --socket {}", binary("swarmctl")?.display(), on.socket().display()))
}

fn shell(on: &Host, script: &str) -> Result<Output> {
    run("timeout", &["300", "sh", "-c", &format!("S='{}'; {script}", swarmctl(on)?)])
}

fn begin(on: &Host, arguments: &[&str]) -> Result<Going> {
    let mut command = Command::new(binary("swarmctl")?);
    command.arg("--socket").arg(on.socket()).args(arguments);
    Ok(Going(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?))
}

/// `far.1` runs on another node than the manager.
pub fn work(manager: &Host) -> Result<()> {
    files(manager)?;
    let told = shell(manager, "$S task top far.1; $S task top far.1 -o pid,args")?.success()?;
    ensure!(told.contains("PID") && told.matches("sleep 3600").count() >= 2, "{told}");
    let line = format!("{} task exec -it far.1 sh -c 'test -t 0 && test -t 1 && echo yes; exit 5'", swarmctl(manager)?);
    let typed = run("timeout", &["300", "script", "-qec", &line, "/dev/null"])?;
    ensure!(typed.status == 5 && typed.stdout.contains("yes\r\n"), "{typed:?}");
    let refused = shell(manager, "$S task exec -it far.1 true </dev/null")?;
    ensure!(refused.status == 1 && refused.stderr.contains("not a terminal"), "{refused:?}");
    ports(manager)
}

fn files(manager: &Host) -> Result<()> {
    let dir = manager.dir().join("afar");
    std::fs::create_dir_all(dir.join("tree"))?;
    let data: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
    std::fs::write(dir.join("tree/a"), &data)?;
    symlink("a", dir.join("tree/link"))?;
    let at = dir.display();
    shell(manager, &format!("$S task cp {at}/tree far.1:/tmp && $S task cp far.1:/tmp/tree {at}/back"))?.success()?;
    ensure!(std::fs::read(dir.join("back/a"))? == data && std::fs::read_link(dir.join("back/link"))?.as_os_str() == "a");
    // Into a directory that is there, and under another name.
    shell(manager, &format!("$S task cp {at}/tree/a far.1:/tmp/other && $S task cp far.1:tmp/other {at}/back"))?.success()?;
    ensure!(std::fs::read(dir.join("back/other"))? == data);
    let names = shell(manager, "$S task cp far.1:/tmp/tree - | tar -t")?.success()?;
    ensure!(names.contains("tree/a\n") && names.contains("tree/link"), "{names}");
    shell(manager, &format!("tar -C {at} -c tree/link | $S task cp - far.1:/tmp && $S task exec far.1 test -L /tmp/tree/link"))?
        .success()?;
    for (arguments, status, words) in [
        (format!("{at}/none far.1:/tmp"), 1, "none"),
        (format!("far.1:/none {at}/x"), 3, "Could not find the file"),
        (format!("{at}/tree far.1:/no/such/place"), 3, "Could not find the file"),
        (format!("far.1:/tmp {at}/x/"), 1, "no such directory"),
        (format!("{at}/tree {at}/x"), 1, "TASK:PATH"),
    ] {
        let refused = shell(manager, &format!("$S task cp {arguments}"))?;
        ensure!(refused.status == status && refused.stderr.contains(words), "{arguments}: {refused:?}");
    }
    let left: Vec<_> = std::fs::read_dir(&dir)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left.len() == 2, "{left:?}");
    Ok(())
}

fn ports(manager: &Host) -> Result<()> {
    let server = ["task", "exec", "far.1", "sh", "-c", "while true; do busybox nc -l -p 8080 -e cat; done"];
    let _server = begin(manager, &server)?;
    let mut forward = begin(manager, &["task", "port-forward", "far.1", "0:8080"])?;
    let mut line = String::new();
    BufReader::new(forward.0.stdout.take().context("it has an output")?).read_line(&mut line)?;
    let (here, there) = line.trim().split_once(" -> ").context(line.clone())?;
    ensure!(there == "8080", "{line}");
    let text: Vec<u8> = (0..500_000u32).map(|at| (at % 241) as u8).collect();
    for _ in 0..3 {
        // Between two connections the little server listens to nobody.
        eventually(SOON, "the task answers", || {
            let mut stream = TcpStream::connect(here)?;
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            let (mut writer, said) = (stream.try_clone()?, text.clone());
            let writing = std::thread::spawn(move || writer.write_all(&said).and_then(|()| writer.shutdown(Shutdown::Write)));
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard)?;
            let _ = writing.join(); // what was not sent does not come back
            ensure!(heard == text, "{} bytes of {}", heard.len(), text.len());
            Ok(())
        })?;
    }
    Ok(())
}
