//! Makes an image archive from files: where the demonstration's image comes from.
//!
//! ```sh
//! pack --name whoami:latest --entrypoint /whoami --expose 8080/tcp target/release/whoami:/whoami whoami.tar
//! ```
//! The archive is an OCI layout and a `docker load` archive in one, the same bytes for the same input.

use std::path::PathBuf;
use std::process::ExitCode;

use skep_images::{FileSource, ImageConfig, LayerFile, Reference, build_image_archive};

const USAGE: &str = "usage: pack --name REFERENCE [--entrypoint WORD]... [--cmd WORD]... [--env NAME=value]... \
                     [--expose PORT/PROTOCOL]... [--label NAME=value]... [--user USER] [--workdir PATH] \
                     [--stop-signal SIGNAL] SOURCE:PATH[:MODE]... OUTPUT";

#[derive(Default)]
struct Options {
    words: Vec<String>,
    name: Option<Reference>,
    config: ImageConfig,
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)).and_then(build) {
        Ok(digest) => {
            println!("{digest}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("pack: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn build(mut options: Options) -> Result<String, String> {
    let name = options.name.ok_or(USAGE)?;
    let output = PathBuf::from(options.words.pop().ok_or(USAGE)?);
    let files = options.words.iter().map(|word| file(word)).collect::<Result<_, _>>()?;
    let digest = build_image_archive(&output, &name, files, options.config).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("{error}{cause}")
    })?;
    Ok(digest.to_string())
}

/// `SOURCE:PATH[:MODE]`, the mode in octal and 755 unless given.
fn file(word: &str) -> Result<LayerFile, String> {
    let bad = || format!("{word} is not SOURCE:PATH[:MODE]\n{USAGE}");
    let mut parts = word.split(':');
    let (source, path) = (parts.next().ok_or_else(bad)?, parts.next().ok_or_else(bad)?);
    let mode = parts.next().map_or(Ok(0o755), |mode| u32::from_str_radix(mode, 8).map_err(|_| bad()))?;
    if parts.next().is_some() {
        return Err(bad());
    }
    Ok(LayerFile { path: path.to_owned(), source: FileSource::Path(source.into()), mode })
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options::default();
    while let Some(flag) = arguments.next() {
        if !flag.starts_with("--") {
            options.words.push(flag);
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{flag} needs a value\n{USAGE}"))?;
        let pair = || value.split_once('=').ok_or_else(|| format!("{flag} {value} lacks a '='\n{USAGE}"));
        let config = &mut options.config;
        match flag.as_str() {
            "--name" => options.name = Some(value.parse().map_err(|error| format!("{error}"))?),
            "--entrypoint" => config.entrypoint.push(value),
            "--cmd" => config.cmd.push(value),
            "--env" => {
                pair()?;
                config.env.push(value);
            }
            "--expose" => config.exposed_ports.push(value),
            "--label" => {
                let (name, text) = pair()?;
                config.labels.insert(name.to_owned(), text.to_owned());
            }
            "--user" => config.user = Some(value),
            "--workdir" => config.working_dir = Some(value),
            "--stop-signal" => config.stop_signal = Some(value),
            _ => return Err(format!("unknown flag {flag}\n{USAGE}")),
        }
    }
    Ok(options)
}
