//! What `skep.v1` says in numbers of its own.
//!
//! `InitRequest.availability` has the numbers of `NodeSpec.availability`, so it is parsed as [`skep_types::Availability`] too.

use crate::skep::status_response::Role;
use skep_types::NodeRole;

impl From<Option<NodeRole>> for Role {
    fn from(role: Option<NodeRole>) -> Self {
        match role {
            None => Self::None,
            Some(NodeRole::Worker) => Self::Worker,
            Some(NodeRole::Manager) => Self::Manager,
        }
    }
}

impl From<Role> for Option<NodeRole> {
    fn from(role: Role) -> Self {
        match role {
            Role::None => None,
            Role::Worker => Some(NodeRole::Worker),
            Role::Manager => Some(NodeRole::Manager),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{parse, skep::init_request};
    use skep_types::Availability;

    #[test]
    fn a_role_on_the_local_socket_comes_back() {
        for role in [None, Some(NodeRole::Worker), Some(NodeRole::Manager)] {
            assert_eq!(Option::<NodeRole>::from(Role::from(role)), role);
        }
    }

    #[test]
    fn the_availability_of_init_is_that_of_node_specs() {
        let parsed = |number| parse::<Availability>("availability", number as i32);
        assert_eq!(parsed(init_request::Availability::Active), Ok(Availability::Active));
        assert_eq!(parsed(init_request::Availability::Pause), Ok(Availability::Pause));
        assert_eq!(parsed(init_request::Availability::Drain), Ok(Availability::Drain));
    }
}
