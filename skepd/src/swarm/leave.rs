//! Out of the cluster again.

use super::{Seat, Swarm};
use crate::agent::chain;
use crate::state::NodeFile;
use anyhow::Result;
use tonic::Status;

impl Swarm {
    /// Whether the node may leave. A manager is taken off the others' list here, after it has handed over.
    ///
    /// # Errors
    /// FAILED_PRECONDITION for what `force` overrides.
    pub async fn before_leaving(&self, force: bool) -> Result<(), Status> {
        let part = match &self.seat {
            Seat::Manager(part) => part,
            Seat::Worker => return Ok(()),
            Seat::Locked | Seat::Vacant(_) if force => {
                tracing::warn!("leaving without telling the other managers, for the manager of this node does not run");
                return Ok(());
            }
            Seat::Locked | Seat::Vacant(_) => {
                return Err(Status::failed_precondition(
                    "the manager of this node does not run and cannot take itself off the others' list; repeat with --force, and then \
                     remove the node on another manager with `swarmctl node rm --force`",
                ));
            }
        };
        // A manager that the others do not have yet is not the last one, whatever its own list says.
        if part.is_last() && !self.node.joining {
            return if force {
                Ok(())
            } else {
                Err(Status::failed_precondition(
                    "this node is the last manager: leaving loses the cluster's state, its services and its secrets; repeat with --force if that is meant",
                ))
            };
        }
        part.hand_over().await;
        match part.leave_group(force).await {
            Ok(()) => Ok(()),
            Err(error) if force => {
                tracing::warn!(error = %chain(&error), "leaving although the other managers still count on this one");
                Ok(())
            }
            Err(error) => Err(Status::failed_precondition(format!("{} (--force)", chain(&error)))),
        }
    }

    /// Ends all parts and removes the tasks with everything they have. A crash from here on ends with a node that is in no
    /// cluster.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub async fn leave(self) -> Result<()> {
        NodeFile::remove(&self.parts.config.data_dir)?;
        skep_failpoint::failpoint!("skepd.leave.forgotten");
        if let Some(renewer) = self.renewer {
            renewer.stop().await;
        }
        self.agent.leave().await;
        if let Seat::Manager(part) = self.seat {
            part.stop().await;
        }
        Ok(())
    }
}
