//! Reading and changing the one cluster object.

use crate::commands::TRIES;
use crate::connect::Connection;
use crate::failure::{Exit, Failure};
use skep_proto::{FromWire, ToWire, v1};
use skep_types::{Cluster, ClusterSpec};

pub async fn cluster(connection: &Connection) -> Result<v1::Cluster, Failure> {
    let answer = connection.control().list_clusters(v1::ListClustersRequest::default()).await?.into_inner();
    answer
        .clusters
        .into_iter()
        .next()
        .ok_or_else(|| Failure::new(Exit::NotFound, "this node is not in a cluster; make one with `swarmctl cluster init`"))
}

/// Reads the settings, changes them, writes them back with the version they were read at; looks again if it was overtaken. Returns the
/// cluster as it was and as it is now.
pub async fn change(
    connection: &Connection,
    rotation: v1::KeyRotation,
    edit: impl Fn(&mut ClusterSpec) -> Result<(), Failure>,
) -> Result<(Cluster, Cluster), Failure> {
    let mut tries = 0;
    loop {
        let before = Cluster::from_wire(cluster(connection).await?)?;
        let mut spec = before.spec.clone();
        edit(&mut spec)?;
        let request = v1::UpdateClusterRequest {
            cluster_id: before.id.to_string(),
            cluster_version: Some(v1::Version { index: before.meta.version.0 }),
            spec: Some(spec.to_wire()),
            rotation: Some(rotation),
        };
        tries += 1;
        match connection.control().update_cluster(request).await.map_err(Failure::from) {
            Ok(answer) => {
                let after = answer.into_inner().cluster.ok_or_else(|| Failure::failed("the manager's answer holds no cluster"))?;
                return Ok((before, Cluster::from_wire(after)?));
            }
            Err(failure) if failure.exit == Exit::Conflict && tries < TRIES => {}
            Err(failure) => return Err(failure),
        }
    }
}
