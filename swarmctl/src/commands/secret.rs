//! `swarmctl secret …`

use super::payload::{self, Listed};
use super::{InspectFlags, ListFlags, each};
use crate::connect::Connection;
use crate::failure::Failure;
use crate::flags::{PayloadFilter, PayloadFilters, PayloadFlags, payload_filter};
use crate::{output, resolve};
use serde_json::Value;
use skep_proto::{FromWire, ToWire, v1};
use skep_types::{SECRET_MAX_BYTES, Secret, SecretSpec, Sensitive};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a secret of a file, or of standard input (-)
    Create {
        #[command(flatten)]
        flags: PayloadFlags,
        #[arg(value_name = "SECRET")]
        name: String,
        #[arg(value_name = "FILE|-")]
        file: String,
    },
    /// List secrets
    Ls {
        #[command(flatten)]
        flags: ListFlags,
        /// Only those with id=, name= (their beginnings), label=
        #[arg(long, short = 'f', value_name = "KEY=VALUE", value_parser = payload_filter)]
        filter: Vec<PayloadFilter>,
    },
    /// Show secrets in full, but for what they hold
    Inspect {
        #[arg(required = true, value_name = "SECRET")]
        secrets: Vec<String>,
        #[command(flatten)]
        flags: InspectFlags,
    },
    /// Remove secrets; one that is used stays, and it is said by whom
    Rm {
        #[arg(required = true, value_name = "SECRET")]
        secrets: Vec<String>,
    },
}

pub async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    match command {
        Command::Create { flags, name, file } => {
            let data = Sensitive(payload::read("secret", &file, SECRET_MAX_BYTES)?);
            let spec = SecretSpec { annotations: flags.annotations(name), data, templating: flags.templating(), driver: None };
            let request = v1::CreateSecretRequest { spec: Some(spec.to_wire()) };
            let answer = connection.control().create_secret(request).await?.into_inner();
            output::put(&format!("{}\n", answer.secret.map(|secret| secret.id).unwrap_or_default()))
        }
        Command::Ls { flags, filter } => list(&flags, &filter, connection).await,
        Command::Inspect { secrets, flags } => {
            let mut found = Vec::new();
            for name in secrets {
                let mut shown = output::readable(&Secret::from_wire(resolve::secret(connection, &name).await?)?)?;
                // The manager does not tell it; an empty list would look as if there were none.
                if let Some(Value::Object(spec)) = shown.get_mut("spec") {
                    spec.remove("data");
                }
                found.push(shown);
            }
            output::inspect(&found, flags.format.as_deref())
        }
        Command::Rm { secrets } => {
            each(&secrets, async |name| {
                let secret_id = resolve::secret(connection, name).await?.id;
                connection.control().remove_secret(v1::RemoveSecretRequest { secret_id }).await?;
                output::put(&format!("{name}\n"))
            })
            .await
        }
    }
}

async fn list(flags: &ListFlags, wanted: &[PayloadFilter], connection: &Connection) -> Result<(), Failure> {
    let PayloadFilters { ids, names, labels } = PayloadFilters::of(wanted);
    let filters = v1::list_secrets_request::Filters { id_prefixes: ids, name_prefixes: names, labels, ..Default::default() };
    let answer = connection.control().list_secrets(v1::ListSecretsRequest { filters: Some(filters) }).await?.into_inner();
    let found = answer.secrets.into_iter().map(Secret::from_wire).collect::<Result<Vec<_>, _>>()?;
    let listed = found.iter().map(|item| Listed { id: item.id.as_str(), annotations: &item.spec.annotations, meta: &item.meta });
    payload::print(listed.collect(), flags)
}
