//! `swarmctl secret …`

use super::payload::{Listed, Payload};
use crate::connect::Connection;
use crate::failure::Failure;
use crate::flags::{PayloadFilters, PayloadFlags};
use crate::{output, resolve};
use serde_json::Value;
use skep_proto::{FromWire, ToWire, v1};
use skep_types::{SECRET_MAX_BYTES, Secret, SecretSpec, Sensitive};

impl Payload for Secret {
    const KIND: &str = "secret";
    const MAX: usize = SECRET_MAX_BYTES;

    async fn create(flags: PayloadFlags, name: String, data: Vec<u8>, connection: &Connection) -> Result<String, Failure> {
        let templating = flags.templating();
        let spec = SecretSpec { annotations: flags.annotations(name), data: Sensitive(data), templating, driver: None };
        let answer = connection.control().create_secret(v1::CreateSecretRequest { spec: Some(spec.to_wire()) }).await?.into_inner();
        Ok(answer.secret.map(|secret| secret.id).unwrap_or_default())
    }

    async fn list(filters: PayloadFilters, connection: &Connection) -> Result<Vec<Self>, Failure> {
        let PayloadFilters { ids, names, labels } = filters;
        let filters = v1::list_secrets_request::Filters { id_prefixes: ids, name_prefixes: names, labels, ..Default::default() };
        let answer = connection.control().list_secrets(v1::ListSecretsRequest { filters: Some(filters) }).await?.into_inner();
        Ok(answer.secrets.into_iter().map(Self::from_wire).collect::<Result<_, _>>()?)
    }

    async fn inspect(name: &str, connection: &Connection) -> Result<Value, Failure> {
        let mut shown = output::readable(&Self::from_wire(resolve::secret(connection, name).await?)?)?;
        // The manager does not tell it; an empty list would look as if there were none.
        if let Some(Value::Object(spec)) = shown.get_mut("spec") {
            spec.remove("data");
        }
        Ok(shown)
    }

    async fn remove(name: &str, connection: &Connection) -> Result<(), Failure> {
        let secret_id = resolve::secret(connection, name).await?.id;
        connection.control().remove_secret(v1::RemoveSecretRequest { secret_id }).await?;
        Ok(())
    }

    fn listed(&self) -> Listed<'_> {
        Listed { id: self.id.as_str(), annotations: &self.spec.annotations, meta: &self.meta }
    }
}
