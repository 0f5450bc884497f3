//! Whose managers the simulated agents talk to: ours, or dockerd's.

use crate::http::Http;
use crate::managers::Managers;
use crate::peers::Peer;
use crate::sessions::service;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use skep_proto::v1;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Managers of one kind.
pub enum Side {
    Ours(Managers),
    Dockerd(SwarmKit),
}

/// One dockerd in swarm mode, whose own agent gets no tasks.
pub struct SwarmKit {
    peer: Peer,
    http: Mutex<Http>,
    token: String,
    address: String,
}

impl SwarmKit {
    /// # Errors
    /// If its API does not answer as expected.
    pub fn new(peer: Peer) -> Result<Self> {
        let mut http = Http::connect(&peer.path("SOCKET"))?;
        let swarm = http.json("GET", "/swarm", &Value::Null)?;
        let token = swarm["JoinTokens"]["Worker"].as_str().context("dockerd has no join token")?.to_owned();
        let info = http.json("GET", "/info", &Value::Null)?;
        let address = info["Swarm"]["RemoteManagers"][0]["Addr"].as_str().context("dockerd names no manager")?.to_owned();
        let node = info["Swarm"]["NodeID"].as_str().context("dockerd names no node")?.to_owned();
        let old = http.json("GET", &format!("/nodes/{node}"), &Value::Null)?;
        let mut spec = old["Spec"].clone();
        spec["Availability"] = json!("drain");
        http.json("POST", &format!("/nodes/{node}/update?version={}", old["Version"]["Index"]), &spec)?;
        Ok(Self { peer, http: Mutex::new(http), token, address })
    }

    fn http(&self) -> MutexGuard<'_, Http> {
        self.http.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spec(name: &str, replicas: usize) -> Value {
        json!({
            "Name": name,
            "TaskTemplate": {
                "ContainerSpec": {"Image": "registry.example/nothing:1"},
                "RestartPolicy": {"Condition": "any", "Delay": 0},
            },
            "Mode": {"Replicated": {"Replicas": replicas}},
            "EndpointSpec": {"Mode": "dnsrr"},
        })
    }

    fn revision(&self) -> Result<u64> {
        let mut http = self.http();
        let name = format!("bench-{:016x}", rand::random::<u64>());
        let answer = http.json("POST", "/configs/create", &json!({"Name": name, "Data": "eHh4"}))?;
        let id = answer["ID"].as_str().context("a new config without an id")?.to_owned();
        let config = http.json("GET", &format!("/configs/{id}"), &Value::Null)?;
        config["Version"]["Index"].as_u64().context("a new config without a version")
    }
}

impl Side {
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ours(_) => "skep",
            Self::Dockerd(_) => "dockerd 20.10",
        }
    }

    /// `host:port` each.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        match self {
            Self::Ours(managers) => managers.addresses(),
            Self::Dockerd(dockerd) => vec![dockerd.address.clone()],
        }
    }

    #[must_use]
    pub fn worker_token(&self) -> String {
        match self {
            Self::Ours(managers) => managers.worker_token.clone(),
            Self::Dockerd(dockerd) => dockerd.token.clone(),
        }
    }

    /// The processes that hold the sessions.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        match self {
            Self::Ours(managers) => managers.pids(),
            Self::Dockerd(dockerd) => dockerd.peer.daemons().into_iter().take(1).collect(),
        }
    }

    /// Writes one object; its version counts the commits before it.
    ///
    /// # Errors
    /// The API's refusal.
    pub async fn revision(&self) -> Result<u64> {
        match self {
            Self::Ours(managers) => managers.revision().await,
            Self::Dockerd(dockerd) => dockerd.revision(),
        }
    }

    /// Makes a further service.
    ///
    /// # Errors
    /// The API's refusal.
    pub async fn create(&self, name: &str, replicas: usize) -> Result<String> {
        match self {
            Self::Ours(managers) => {
                let mut control = managers.control(managers.leader().await?);
                let request = v1::CreateServiceRequest { spec: Some(service(name, replicas as u64)) };
                let answer = control.create_service(request).await?.into_inner();
                Ok(answer.service.context("no service in the answer")?.id)
            }
            Self::Dockerd(dockerd) => {
                let answer = dockerd.http().json("POST", "/services/create", &SwarmKit::spec(name, replicas))?;
                Ok(answer["ID"].as_str().context("a new service without an id")?.to_owned())
            }
        }
    }

    /// Makes the service, or gives the one there another number of replicas. Returns its id.
    ///
    /// # Errors
    /// The API's refusal.
    pub async fn scale(&self, old: Option<&str>, replicas: usize) -> Result<String> {
        match (self, old) {
            (_, None) => self.create("load", replicas).await,
            (Self::Ours(managers), Some(id)) => {
                let mut control = managers.control(managers.leader().await?);
                let request = v1::GetServiceRequest { service_id: id.to_owned(), insert_defaults: false };
                let old = control.get_service(request).await?.into_inner().service.context("no service in the answer")?;
                let request = v1::UpdateServiceRequest {
                    service_id: id.to_owned(),
                    service_version: old.meta.and_then(|meta| meta.version),
                    spec: Some(service("load", replicas as u64)),
                    rollback: 0,
                };
                control.update_service(request).await?;
                Ok(id.to_owned())
            }
            (Self::Dockerd(dockerd), Some(id)) => {
                let mut http = dockerd.http();
                let old = http.json("GET", &format!("/services/{id}"), &Value::Null)?;
                let path = format!("/services/{id}/update?version={}", old["Version"]["Index"]);
                http.json("POST", &path, &SwarmKit::spec("load", replicas))?;
                Ok(id.to_owned())
            }
        }
    }

    /// How many tasks of a service the manager knows to run.
    ///
    /// # Errors
    /// The API's refusal.
    pub async fn running(&self, id: &str) -> Result<u64> {
        match self {
            Self::Ours(managers) => {
                let request = v1::ListServiceStatusesRequest { services: vec![id.to_owned()] };
                let answer = managers.control(managers.leader().await?).list_service_statuses(request).await?.into_inner();
                Ok(answer.statuses.first().context("no status of the service")?.running_tasks)
            }
            Self::Dockerd(dockerd) => {
                let services = dockerd.http().json("GET", "/services?status=true", &Value::Null)?;
                let found = services.as_array().into_iter().flatten().find(|service| service["ID"] == id).cloned();
                found.context("the service is gone")?["ServiceStatus"]["RunningTasks"].as_u64().context("no status of the service")
            }
        }
    }

    /// Where the log of commits is, if it is to be looked at.
    #[must_use]
    pub fn log_dir(&self) -> Option<PathBuf> {
        match self {
            Self::Ours(managers) => Some(managers.data_dir(0).join("raft")),
            Self::Dockerd(_) => None,
        }
    }

    /// The ends of all logs, for messages.
    #[must_use]
    pub fn log_tails(&self) -> String {
        match self {
            Self::Ours(managers) => managers.log_tails(),
            Self::Dockerd(dockerd) => {
                let log = dockerd.peer.path("STATE").join("../../dockerd.log");
                let text = std::fs::read_to_string(log).unwrap_or_default();
                text.chars().rev().take(2_000).collect::<Vec<_>>().into_iter().rev().collect()
            }
        }
    }
}
