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

/// Marks a name that was given on this node; one that came from a registry has it not, or empty.
const GIVEN_HERE: &str = "dev.skep.image-given-here";

/// Where a name comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Registry,
    /// Loaded from an archive, or a further name of an image.
    Here,
}

/// A name and what it points to.
pub(super) struct Named {
    pub name: String,
    pub target: Descriptor,
    pub origin: Origin,
}

impl Named {
    /// `None` for a record that points to nothing we understand (another digest algorithm, say).
    fn read(record: Record) -> Option<Self> {
        let target = record.target?;
        let digest: Digest = target.digest.parse().ok()?;
        let size = u64::try_from(target.size).ok()?;
        let is_given = record.labels.get(GIVEN_HERE).is_some_and(|mark| !mark.is_empty());
        let origin = if is_given { Origin::Here } else { Origin::Registry };
        Some(Self { name: record.name, target: Descriptor::new(&target.media_type, digest, size), origin })
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
    pub async fn set_name(&self, lease: &str, name: &str, target: &Descriptor, origin: Origin) -> Result<(), StoreError> {
        let wire = WireDescriptor {
            media_type: target.media_type.clone(),
            digest: target.digest.to_string(),
            size: target.size,
            ..Default::default()
        };
        let labels = (origin == Origin::Here).then(|| (GIVEN_HERE.to_owned(), "1".to_owned())).into_iter().collect();
        let image = Some(Record { name: name.to_owned(), target: Some(wire), labels, ..Default::default() });
        let step = Step::new("naming image", &name).under(lease);
        let create = CreateImageRequest { image: image.clone(), ..Default::default() };
        let send = |request| {
            let mut client = service!(self, ImagesClient<_>);
            async move { client.create(request).await }
        };
        match self.call(step, create, send).await {
            Ok(_) => {}
            Err(error) if error.is_already_exists() => {
                let update_mask = Some(FieldMask { paths: vec!["target".to_owned(), format!("labels.{GIVEN_HERE}")] });
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
