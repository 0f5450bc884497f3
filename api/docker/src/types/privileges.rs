//! What a container may do beyond the usual, and less than it.

use super::value::{is_default, words};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use skep_types::{CredentialSpec as Credential, FieldError, Seccomp, SelinuxContext};

words!(apparmor: skep_types::AppArmor { "default" = Default, "disabled" = Disabled });

/// The first two are `null` when they are not set: clients look at the keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Privileges {
    pub credential_spec: Option<CredentialSpec>,
    #[serde(rename = "SELinuxContext")]
    pub selinux_context: Option<SeLinuxContext>,
    #[serde(skip_serializing_if = "is_default")]
    pub seccomp: Option<SeccompOpts>,
    #[serde(skip_serializing_if = "is_default")]
    pub app_armor: Option<AppArmorOpts>,
    pub no_new_privileges: bool,
}

/// Exactly one of the three is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CredentialSpec {
    pub config: String,
    pub file: String,
    pub registry: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SeLinuxContext {
    pub disable: bool,
    pub user: String,
    pub role: String,
    pub r#type: String,
    pub level: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SeccompOpts {
    /// `default`, `unconfined` or `custom`.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: String,
    /// Base64 of a profile in Docker's JSON form.
    #[serde(skip_serializing_if = "is_default")]
    pub profile: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AppArmorOpts {
    /// `default` or `disabled`.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: String,
}

impl TryFrom<Privileges> for skep_types::Privileges {
    type Error = FieldError;

    fn try_from(json: Privileges) -> Result<Self, FieldError> {
        let Privileges { credential_spec, selinux_context, seccomp, app_armor, no_new_privileges } = json;
        Ok(Self {
            credential_spec: credential_spec.map(Credential::try_from).transpose().map_err(|error| error.inside("CredentialSpec"))?,
            selinux: selinux_context.map(Into::into),
            seccomp: seccomp.map(Seccomp::try_from).transpose().map_err(|error| error.inside("Seccomp"))?,
            apparmor: app_armor
                .map(|options| apparmor::from("Mode", &options.mode))
                .transpose()
                .map_err(|error| error.inside("AppArmor"))?,
            no_new_privileges,
        })
    }
}

impl From<&skep_types::Privileges> for Privileges {
    fn from(wish: &skep_types::Privileges) -> Self {
        let skep_types::Privileges { credential_spec, selinux, seccomp, apparmor, no_new_privileges } = wish;
        Self {
            credential_spec: credential_spec.as_ref().map(Into::into),
            selinux_context: selinux.as_ref().map(Into::into),
            seccomp: seccomp.as_ref().map(Into::into),
            app_armor: apparmor.map(|mode| AppArmorOpts { mode: apparmor::to(mode).to_owned() }),
            no_new_privileges: *no_new_privileges,
        }
    }
}

impl TryFrom<CredentialSpec> for Credential {
    type Error = FieldError;

    fn try_from(json: CredentialSpec) -> Result<Self, FieldError> {
        let CredentialSpec { config, file, registry } = json;
        match [config.is_empty(), file.is_empty(), registry.is_empty()] {
            [false, true, true] => Ok(Self::Config(config)),
            [true, false, true] => Ok(Self::File(file)),
            [true, true, false] => Ok(Self::Registry(registry)),
            [true, true, true] => Err(FieldError::new("", "is empty; give one of Config, File and Registry")),
            _ => Err(FieldError::new("", "has several sources; give one of Config, File and Registry")),
        }
    }
}

impl From<&Credential> for CredentialSpec {
    fn from(wish: &Credential) -> Self {
        match wish.clone() {
            Credential::Config(config) => Self { config, ..Self::default() },
            Credential::File(file) => Self { file, ..Self::default() },
            Credential::Registry(registry) => Self { registry, ..Self::default() },
        }
    }
}

impl From<SeLinuxContext> for SelinuxContext {
    fn from(json: SeLinuxContext) -> Self {
        let SeLinuxContext { disable, user, role, r#type, level } = json;
        Self { disable, user, role, kind: r#type, level }
    }
}

impl From<&SelinuxContext> for SeLinuxContext {
    fn from(wish: &SelinuxContext) -> Self {
        let SelinuxContext { disable, user, role, kind, level } = wish.clone();
        Self { disable, user, role, r#type: kind, level }
    }
}

impl TryFrom<SeccompOpts> for Seccomp {
    type Error = FieldError;

    fn try_from(json: SeccompOpts) -> Result<Self, FieldError> {
        let SeccompOpts { mode, profile } = json;
        let mode = match mode.to_ascii_lowercase().as_str() {
            "custom" => {
                let profile = STANDARD.decode(profile).map_err(|error| FieldError::new("Profile", format!("is not base64: {error}")))?;
                return Ok(Self::Custom(profile));
            }
            "" | "default" => Self::Default,
            "unconfined" => Self::Unconfined,
            _ => return Err(FieldError::new("Mode", format!("{mode:?} is not known; use one of default, unconfined, custom"))),
        };
        if profile.is_empty() { Ok(mode) } else { Err(FieldError::new("Profile", "is used with Mode custom only; leave it out")) }
    }
}

impl From<&Seccomp> for SeccompOpts {
    fn from(wish: &Seccomp) -> Self {
        let (mode, profile) = match wish {
            Seccomp::Default => ("default", String::new()),
            Seccomp::Unconfined => ("unconfined", String::new()),
            Seccomp::Custom(profile) => ("custom", STANDARD.encode(profile)),
        };
        Self { mode: mode.to_owned(), profile }
    }
}
