//! `swarmctl image …`: the images of this node.

use super::ListFlags;
use crate::connect::Connection;
use crate::failure::Failure;
use crate::output::{self, Table};
use crate::when;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use skep_proto::skep::{Image, ListImagesRequest, LoadImageChunk, PullImageRequest, RemoveImageRequest};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use tokio::io::AsyncReadExt;

/// Bytes per message of a load; well below the 4 MiB that a server takes.
const CHUNK: usize = 1 << 20;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List images
    Ls(ListFlags),
    /// Load an archive made by `docker save` or of an OCI layout
    Load {
        /// The archive; without it, or with "-", standard input is read
        #[arg(long, short = 'i', value_name = "FILE")]
        input: Option<PathBuf>,
        #[arg(value_name = "FILE", conflicts_with = "input")]
        file: Option<PathBuf>,
        /// Only print the names
        #[arg(long, short = 'q')]
        quiet: bool,
    },
    /// Pull an image from its registry
    Pull {
        image: String,
        /// Only print the name
        #[arg(long, short = 'q')]
        quiet: bool,
    },
    /// Remove images by name
    Rm {
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
}

pub async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    match command {
        Command::Ls(flags) => list(flags, connection).await,
        Command::Load { input, file, quiet } => load(input.or(file), quiet, connection).await,
        Command::Pull { image, quiet } => pull(&image, quiet, connection).await,
        Command::Rm { images } => {
            for reference in images {
                connection.images().remove(RemoveImageRequest { reference: reference.clone() }).await?;
                output::put(&format!("{reference}\n"))?;
            }
            Ok(())
        }
    }
}

async fn list(flags: ListFlags, connection: &Connection) -> Result<(), Failure> {
    let found = connection.images().list(ListImagesRequest {}).await?.into_inner().images;
    if flags.quiet {
        return output::put(&found.iter().map(|image| format!("{}\n", image.digest)).collect::<String>());
    }
    let mut table = Table::new(&["IMAGE", "DIGEST", "PLATFORM", "CREATED", "SIZE"]);
    for image in &found {
        let digest =
            if flags.no_trunc { image.digest.clone() } else { image.digest.trim_start_matches("sha256:").chars().take(12).collect() };
        let created = image
            .created_at
            .as_ref()
            .map(|at| format!("{} ago", when::about(when::now().since(skep_types::Timestamp::from_secs(at.seconds)))));
        table.row(vec![
            image.reference.clone(),
            digest,
            format!("{}/{}", image.os, image.architecture),
            created.unwrap_or_default(),
            indicatif::DecimalBytes(image.size_bytes).to_string(),
        ]);
    }
    table.print(&flags.format)
}

async fn load(file: Option<PathBuf>, quiet: bool, connection: &Connection) -> Result<(), Failure> {
    let mut reader: Box<dyn tokio::io::AsyncRead + Send + Unpin> = match file.as_deref().filter(|path| path.as_os_str() != "-") {
        Some(path) => {
            let file =
                tokio::fs::File::open(path).await.map_err(|error| Failure::failed(format!("cannot read {}: {error}", path.display())))?;
            Box::new(file)
        }
        None if std::io::stdin().is_terminal() => return Err(Failure::failed("name an archive, or give one on standard input")),
        None => Box::new(tokio::io::stdin()),
    };
    // Two chunks under way keep disk and daemon busy; a slower daemon holds the reader back.
    let (sender, receiver) = tokio::sync::mpsc::channel(2);
    let reading = tokio::spawn(async move {
        loop {
            let mut data = vec![0; CHUNK];
            let count = reader.read(&mut data).await?;
            data.truncate(count);
            if count == 0 || sender.send(LoadImageChunk { data }).await.is_err() {
                return Ok::<_, std::io::Error>(());
            }
        }
    });
    let loaded = connection.images().load(tokio_stream::wrappers::ReceiverStream::new(receiver)).await?.into_inner();
    reading.await.map_err(|error| Failure::failed(error.to_string()))??;
    let line = |image: &Image| if quiet { format!("{}\n", image.reference) } else { format!("Loaded image: {}\n", image.reference) };
    output::put(&loaded.images.iter().map(line).collect::<String>())
}

async fn pull(reference: &str, quiet: bool, connection: &Connection) -> Result<(), Failure> {
    let request = PullImageRequest { reference: reference.into(), registry_auth: String::new() };
    let mut stream = connection.images().pull(request).await?.into_inner();
    let bars = MultiProgress::new();
    let show = !quiet && std::io::stderr().is_terminal();
    let mut layers: BTreeMap<String, ProgressBar> = BTreeMap::new();
    while let Some(progress) = stream.message().await? {
        if let Some(image) = progress.image {
            bars.clear()?;
            let line =
                if quiet { format!("{}\n", image.reference) } else { format!("{}: pulled\nDigest: {}\n", image.reference, image.digest) };
            return output::put(&line);
        }
        if show && !progress.layer.is_empty() {
            let bar = layers.entry(progress.layer.clone()).or_insert_with(|| {
                let style =
                    ProgressStyle::with_template("{prefix} {msg:<11} [{bar:30}] {bytes:>10}/{total_bytes:<10}").expect("a valid template");
                bars.add(ProgressBar::new(progress.total_bytes).with_style(style.progress_chars("=> ")).with_prefix(progress.layer.clone()))
            });
            bar.set_length(progress.total_bytes);
            bar.set_position(progress.done_bytes);
            bar.set_message(progress.phase);
        }
    }
    Err(Failure::failed(format!("the pull of {reference} ended without an image")))
}
