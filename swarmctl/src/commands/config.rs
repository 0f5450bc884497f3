//! `swarmctl config …`

use super::payload::{Listed, Payload};
use crate::connect::Connection;
use crate::failure::Failure;
use crate::flags::{PayloadFilters, PayloadFlags};
use crate::{output, resolve};
use serde_json::Value;
use skep_proto::{FromWire, ToWire, v1};
use skep_types::{CONFIG_MAX_BYTES, Config, ConfigSpec, Sensitive};

impl Payload for Config {
    const KIND: &str = "config";
    const MAX: usize = CONFIG_MAX_BYTES;

    async fn create(flags: PayloadFlags, name: String, data: Vec<u8>, connection: &Connection) -> Result<String, Failure> {
        let templating = flags.templating();
        let spec = ConfigSpec { annotations: flags.annotations(name), data: Sensitive(data), templating };
        let answer = connection.control().create_config(v1::CreateConfigRequest { spec: Some(spec.to_wire()) }).await?.into_inner();
        Ok(answer.config.map(|config| config.id).unwrap_or_default())
    }

    async fn list(filters: PayloadFilters, connection: &Connection) -> Result<Vec<Self>, Failure> {
        let PayloadFilters { ids, names, labels } = filters;
        let filters = v1::list_configs_request::Filters { id_prefixes: ids, name_prefixes: names, labels, ..Default::default() };
        let answer = connection.control().list_configs(v1::ListConfigsRequest { filters: Some(filters) }).await?.into_inner();
        Ok(answer.configs.into_iter().map(Self::from_wire).collect::<Result<_, _>>()?)
    }

    async fn inspect(name: &str, connection: &Connection) -> Result<Value, Failure> {
        output::readable(&Self::from_wire(resolve::config(connection, name).await?)?)
    }

    async fn remove(name: &str, connection: &Connection) -> Result<(), Failure> {
        let config_id = resolve::config(connection, name).await?.id;
        connection.control().remove_config(v1::RemoveConfigRequest { config_id }).await?;
        Ok(())
    }

    fn listed(&self) -> Listed<'_> {
        Listed { id: self.id.as_str(), annotations: &self.spec.annotations, meta: &self.meta }
    }
}
