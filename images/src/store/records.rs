//! Image records: containerd's names for targets.

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image as Record, ListImagesRequest, UpdateImageRequest,
};
use containerd_client::types::Descriptor as WireDescriptor;
use prost_types::FieldMask;
use skep_failpoint::failpoint;

use super::client::{Containerd, Step, service};
use super::error::{StoreError, found};
use crate::digest::Digest;
use crate::manifest::Descriptor;

/// A name and what it points to.
pub(super) struct Named {
    pub name: String,
    pub target: Descriptor,
}

impl Named {
    /// `None` for a record that points to nothing we understand (another digest algorithm, say).
    fn read(record: Record) -> Option<Self> {
        let target = record.target?;
        let digest: Digest = target.digest.parse().ok()?;
        let size = u64::try_from(target.size).ok()?;
        Some(Self { name: record.name, target: Descriptor::new(&target.media_type, digest, size) })
    }
}

impl Containerd {
    pub async fn named(&self, name: &str) -> Result<Option<Named>, StoreError> {
        let message = GetImageRequest { name: name.to_owned() };
        let send = |request| {
            let mut client = service!(self, ImagesClient<_>);
            async move { client.get(request).await }
        };
        let answer = found(self.call(Step::new("looking for image", &name), message, send).await)?;
        Ok(answer.and_then(|answer| Named::read(answer.image?)))
    }

    /// All names, or those that point to `target`.
    pub async fn names(&self, target: Option<&str>) -> Result<Vec<Named>, StoreError> {
        let filters = target.map(|digest| format!("target.digest==\"{digest}\"")).into_iter().collect();
        let message = ListImagesRequest { filters };
        let send = |request| {
            let mut client = service!(self, ImagesClient<_>);
            async move { client.list(request).await }
        };
        let answer = self.call(Step::new("listing", &"images"), message, send).await?;
        Ok(answer.images.into_iter().filter_map(Named::read).collect())
    }

    /// Lets `name` point to `target`, whatever it pointed to before.
    pub async fn set_name(&self, lease: &str, name: &str, target: &Descriptor) -> Result<(), StoreError> {
        let wire = WireDescriptor {
            media_type: target.media_type.clone(),
            digest: target.digest.to_string(),
            size: target.size,
            ..Default::default()
        };
        let image = Some(Record { name: name.to_owned(), target: Some(wire), ..Default::default() });
        let step = Step::new("naming image", &name).under(lease);
        let create = CreateImageRequest { image: image.clone(), ..Default::default() };
        let send = |request| {
            let mut client = service!(self, ImagesClient<_>);
            async move { client.create(request).await }
        };
        match self.call(step, create, send).await {
            Ok(_) => {}
            Err(error) if error.is_already_exists() => {
                let update_mask = Some(FieldMask { paths: vec!["target".to_owned()] });
                let update = UpdateImageRequest { image, update_mask, ..Default::default() };
                let send = |request| {
                    let mut client = service!(self, ImagesClient<_>);
                    async move { client.update(request).await }
                };
                self.call(step, update, send).await?;
            }
            Err(error) => return Err(error),
        }
        failpoint!("images.image.named");
        Ok(())
    }

    /// Forgets a name; whether it was there. The garbage collector takes what nothing else refers to.
    pub async fn unname(&self, name: &str) -> Result<bool, StoreError> {
        let message = DeleteImageRequest { name: name.to_owned(), sync: false, target: None };
        let send = |request| {
            let mut client = service!(self, ImagesClient<_>);
            async move { client.delete(request).await }
        };
        let removed = found(self.call(Step::new("removing image", &name), message, send).await)?.is_some();
        failpoint!("images.image.removed");
        Ok(removed)
    }
}
