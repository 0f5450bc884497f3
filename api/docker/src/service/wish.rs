//! From the body of a request to what the cluster is asked for: fields read, networks found, credentials put in.

use crate::types::service_spec::ServiceSpec;
use crate::{ApiError, Backend, lookup};
use http::HeaderMap;
use skep_types::{NetworkAttachmentConfig, Runtime, Sensitive, Service, TaskSpec};
use std::sync::Arc;

type Auth = Sensitive<String>;

/// Reads the spec and puts ids where networks are named.
///
/// # Errors
/// 400 naming the field; 404 for a network; 501 for what services do not run.
pub(super) async fn read(backend: &Backend, body: ServiceSpec) -> Result<skep_types::ServiceSpec, ApiError> {
    let (task, runtime) = (&body.task_template, body.task_template.runtime.as_str());
    if task.plugin_spec.is_some() || task.network_attachment_spec.is_some() || !matches!(runtime, "" | "container") {
        let what = if runtime.is_empty() { "plugins and attachments" } else { runtime };
        return Err(ApiError::unimplemented(format!(
            "TaskTemplate.Runtime: services of {what} are not supported; services run containers"
        )));
    }
    let mut spec: skep_types::ServiceSpec =
        body.try_into().map_err(|error: skep_types::FieldError| ApiError::invalid(error.to_string()))?;
    find_networks(backend, &mut spec.networks).await?;
    find_networks(backend, &mut Arc::make_mut(&mut spec.task).networks).await?;
    Ok(spec)
}

async fn find_networks(backend: &Backend, wanted: &mut [NetworkAttachmentConfig]) -> Result<(), ApiError> {
    for wish in wanted {
        wish.target = lookup::network(backend, &wish.target).await?.id.to_string();
    }
    Ok(())
}

/// The header as it came: agents read it. `None`: nothing was said about credentials.
pub(super) fn registry_auth(headers: &HeaderMap) -> Option<Auth> {
    let text = headers.get("x-registry-auth")?.to_str().ok()?;
    (!text.is_empty()).then(|| Sensitive(text.to_owned()))
}

pub(super) fn set_auth(spec: &mut skep_types::ServiceSpec, auth: Auth) {
    if let Runtime::Container(container) = &mut Arc::make_mut(&mut spec.task).runtime {
        container.registry_auth = auth;
    }
}

/// Which credentials stay when an update brings none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Credentials {
    Spec,
    PreviousSpec,
}

impl Credentials {
    pub(super) fn parse(text: Option<&str>) -> Result<Self, ApiError> {
        match text {
            None | Some("spec") => Ok(Self::Spec),
            Some("previous-spec") => Ok(Self::PreviousSpec),
            Some(other) => Err(ApiError::invalid(format!("unsupported registryAuthFrom value {other:?}; use spec or previous-spec"))),
        }
    }

    /// # Errors
    /// 400 if there is no previous spec.
    pub(super) fn of(self, service: &Service) -> Result<Auth, ApiError> {
        let spec = match self {
            Self::Spec => &service.spec,
            Self::PreviousSpec => {
                service.previous_spec.as_ref().ok_or_else(|| ApiError::invalid("service does not have a previous spec"))?
            }
        };
        Ok(TaskSpec::container(&spec.task).map(|container| container.registry_auth.clone()).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn credentials_are_kept_as_they_came() {
        let auth = |text: &'static str| {
            registry_auth(&HeaderMap::from_iter([("x-registry-auth".parse().unwrap(), HeaderValue::from_static(text))]))
        };
        assert_eq!(auth("e30="), Some(Sensitive("e30=".into())));
        assert_eq!(auth("no base64"), Some(Sensitive("no base64".into())));
        assert_eq!((auth(""), registry_auth(&HeaderMap::new())), (None, None));
    }

    #[test]
    fn credentials_of_an_update_come_from_one_of_two_specs() {
        assert_eq!(Credentials::parse(None).unwrap(), Credentials::Spec);
        assert_eq!(Credentials::parse(Some("previous-spec")).unwrap(), Credentials::PreviousSpec);
        assert!(Credentials::parse(Some("x")).is_err());
    }
}
