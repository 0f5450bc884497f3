//! `swarmctl config …`

use super::payload::{self, Listed};
use super::{InspectFlags, ListFlags, each};
use crate::connect::Connection;
use crate::failure::Failure;
use crate::flags::{PayloadFilter, PayloadFilters, PayloadFlags, payload_filter};
use crate::{output, resolve};
use skep_proto::{FromWire, ToWire, v1};
use skep_types::{CONFIG_MAX_BYTES, Config, ConfigSpec, Sensitive};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a config of a file, or of standard input (-)
    Create {
        #[command(flatten)]
        flags: PayloadFlags,
        #[arg(value_name = "CONFIG")]
        name: String,
        #[arg(value_name = "FILE|-")]
        file: String,
    },
    /// List configs
    Ls {
        #[command(flatten)]
        flags: ListFlags,
        /// Only those with id=, name= (their beginnings), label=
        #[arg(long, short = 'f', value_name = "KEY=VALUE", value_parser = payload_filter)]
        filter: Vec<PayloadFilter>,
    },
    /// Show configs in full, with what they hold
    Inspect {
        #[arg(required = true, value_name = "CONFIG")]
        configs: Vec<String>,
        #[command(flatten)]
        flags: InspectFlags,
    },
    /// Remove configs; one that is used stays, and it is said by whom
    Rm {
        #[arg(required = true, value_name = "CONFIG")]
        configs: Vec<String>,
    },
}

pub async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    match command {
        Command::Create { flags, name, file } => {
            let data = Sensitive(payload::read("config", &file, CONFIG_MAX_BYTES)?);
            let spec = ConfigSpec { annotations: flags.annotations(name), data, templating: flags.templating() };
            let request = v1::CreateConfigRequest { spec: Some(spec.to_wire()) };
            let answer = connection.control().create_config(request).await?.into_inner();
            output::put(&format!("{}\n", answer.config.map(|config| config.id).unwrap_or_default()))
        }
        Command::Ls { flags, filter } => list(&flags, &filter, connection).await,
        Command::Inspect { configs, flags } => {
            let mut found = Vec::new();
            for name in configs {
                found.push(output::readable(&Config::from_wire(resolve::config(connection, &name).await?)?)?);
            }
            output::inspect(&found, flags.format.as_deref())
        }
        Command::Rm { configs } => {
            each(&configs, async |name| {
                let config_id = resolve::config(connection, name).await?.id;
                connection.control().remove_config(v1::RemoveConfigRequest { config_id }).await?;
                output::put(&format!("{name}\n"))
            })
            .await
        }
    }
}

async fn list(flags: &ListFlags, wanted: &[PayloadFilter], connection: &Connection) -> Result<(), Failure> {
    let PayloadFilters { ids, names, labels } = PayloadFilters::of(wanted);
    let filters = v1::list_configs_request::Filters { id_prefixes: ids, name_prefixes: names, labels, ..Default::default() };
    let answer = connection.control().list_configs(v1::ListConfigsRequest { filters: Some(filters) }).await?.into_inner();
    let found = answer.configs.into_iter().map(Config::from_wire).collect::<Result<Vec<_>, _>>()?;
    let listed = found.iter().map(|item| Listed { id: item.id.as_str(), annotations: &item.spec.annotations, meta: &item.meta });
    payload::print(listed.collect(), flags)
}
