//! Until the node's own containers, images and volumes are joined to it: refusals in words.

use async_trait::async_trait;
use skep_docker_api::*;
use skep_types::*;
use tokio::sync::mpsc;

pub struct Absent;

fn absent() -> ApiError {
    ApiError::unimplemented("this daemon does not tell of its containers, images and volumes by this call; `swarmctl` does")
}

#[async_trait]
impl Containers for Absent {
    async fn list(&self) -> Result<Vec<Container>, ApiError> {
        Err(absent())
    }

    async fn logs(&self, _: &str, _: LinesWanted) -> Result<mpsc::Receiver<Vec<ContainerLine>>, ApiError> {
        Err(absent())
    }

    async fn usage(&self, _: &str) -> Result<Option<Usage>, ApiError> {
        Err(absent())
    }

    async fn processes(&self, _: &str, _: &str) -> Result<Processes, ApiError> {
        Err(absent())
    }

    async fn kill(&self, _: &str, _: &str) -> Result<(), ApiError> {
        Err(absent())
    }

    async fn stop(&self, _: &str, _: Ending) -> Result<(), ApiError> {
        Err(absent())
    }

    async fn start(&self, _: &str) -> Result<(), ApiError> {
        Err(absent())
    }

    async fn restart(&self, _: &str, _: Ending) -> Result<(), ApiError> {
        Err(absent())
    }

    async fn pause(&self, _: &str) -> Result<(), ApiError> {
        Err(absent())
    }

    async fn unpause(&self, _: &str) -> Result<(), ApiError> {
        Err(absent())
    }

    async fn wait(&self, _: &str, _: WaitFor) -> Result<i32, ApiError> {
        Err(absent())
    }

    async fn resize(&self, _: &str, _: WindowSize) -> Result<(), ApiError> {
        Err(absent())
    }

    async fn remove(&self, _: &str, _: bool) -> Result<(), ApiError> {
        Err(absent())
    }

    async fn create_exec(&self, _: ExecWish) -> Result<String, ApiError> {
        Err(absent())
    }

    async fn exec(&self, _: &str) -> Result<Exec, ApiError> {
        Err(absent())
    }

    async fn start_exec(&self, _: &str, _: bool, _: Option<WindowSize>) -> Result<Attached, ApiError> {
        Err(absent())
    }

    async fn resize_exec(&self, _: &str, _: WindowSize) -> Result<(), ApiError> {
        Err(absent())
    }

    async fn file(&self, _: &str, _: &str) -> Result<FileFacts, ApiError> {
        Err(absent())
    }

    async fn read_archive(&self, _: &str, _: &str) -> Result<(FileFacts, Tar), ApiError> {
        Err(absent())
    }

    async fn write_archive(&self, _: &str, _: &str, _: bool, _: Tar) -> Result<(), ApiError> {
        Err(absent())
    }

    async fn changes(&self, _: &str) -> Result<Vec<FileChange>, ApiError> {
        Err(absent())
    }
}

#[async_trait]
impl Images for Absent {
    async fn list(&self) -> Result<Vec<Image>, ApiError> {
        Err(absent())
    }

    async fn pull(&self, _: &str, _: &str) -> Result<mpsc::Receiver<Result<PullNews, ApiError>>, ApiError> {
        Err(absent())
    }

    async fn load(&self, _: Tar) -> Result<Vec<String>, ApiError> {
        Err(absent())
    }

    async fn tag(&self, _: &str, _: &str) -> Result<(), ApiError> {
        Err(absent())
    }

    async fn untag(&self, _: &str) -> Result<(), ApiError> {
        Err(absent())
    }

    async fn distribution(&self, _: &str, _: &str) -> Result<Distribution, ApiError> {
        Err(absent())
    }
}

#[async_trait]
impl Volumes for Absent {
    async fn list(&self) -> Result<Vec<Volume>, ApiError> {
        Err(absent())
    }

    async fn create(&self, _: &str, _: Labels) -> Result<Volume, ApiError> {
        Err(absent())
    }

    async fn remove(&self, _: &str) -> Result<(), ApiError> {
        Err(absent())
    }

    async fn size(&self, _: &str) -> Result<u64, ApiError> {
        Err(absent())
    }
}

#[async_trait]
impl Happenings for Absent {
    async fn listen(&self) -> Result<(Vec<Happening>, mpsc::Receiver<Happening>), ApiError> {
        Err(absent())
    }
}
