//! Generates the messages, clients and servers of both packages, and what requests look like in memory.

mod shapes; // how much room a request takes

use std::io;
use std::path::PathBuf;

fn main() -> io::Result<()> {
    let files = ["docker/swarmkit/v1/swarmkit.proto", "skep/v1/skep.proto"];
    for file in files {
        println!("cargo::rerun-if-changed=proto/{file}");
    }
    println!("cargo::rerun-if-changed=build");
    let out = PathBuf::from(std::env::var("OUT_DIR").map_err(io::Error::other)?);
    let described = out.join("descriptors.bin");
    let mut messages = prost_build::Config::new();
    // By its name a request finds its shape.
    messages.enable_type_names();
    tonic_prost_build::configure()
        .build_transport(true)
        .codec_path("crate::LeanCodec")
        // The order of `skep_types::Labels`: maps move over without a copy, and equal messages have equal bytes.
        .btree_map(".")
        // Messages that hold keys, tokens or payloads must not be printable by accident.
        .skip_debug([
            ".docker.swarmkit.v1.SecretSpec",
            ".docker.swarmkit.v1.ConfigSpec",
            ".docker.swarmkit.v1.JoinTokens",
            ".docker.swarmkit.v1.EncryptionKey",
            ".docker.swarmkit.v1.RootCA",
            ".docker.swarmkit.v1.RootRotation",
            ".docker.swarmkit.v1.CAConfig",
            ".docker.swarmkit.v1.IssueNodeCertificateRequest",
            ".docker.swarmkit.v1.GetUnlockKeyResponse",
            ".docker.swarmkit.v1.ContainerSpec.PullOptions",
            ".skep.v1.InitResponse",
            ".skep.v1.JoinRequest",
            ".skep.v1.UnlockRequest",
            ".skep.v1.BackupRequest",
            ".skep.v1.RestoreStart",
            ".skep.v1.PullImageRequest",
            ".skep.v1.ResolveImageRequest",
        ])
        .file_descriptor_set_path(&described)
        .compile_with_config(messages, &files, &["proto"])?;
    std::fs::write(out.join("shapes.rs"), shapes::source(&std::fs::read(described)?)?)
}
