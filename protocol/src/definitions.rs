//! RabbitMQ's definitions: everything that the service needs at a broker, its users with their rights included, as one
//! document that an administrator imports.
//!
//! This module must not know any name: they come from [`topology`](crate::topology) and [`rights`](crate::rights).

use serde_json::{Map, Value, json};

use crate::rights::Role;
use crate::topology::Topology;

/// What an import is to bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// The users, with their rights. They have no password, so that nobody is let in as one of them before somebody has
    /// set it; over users that are there already it takes theirs away.
    WithoutPassword,
    /// No users, and no rights.
    None,
}

/// The definitions for a virtual host.
#[must_use]
pub fn definitions(topology: &Topology, vhost: &str, users: Users) -> Value {
    let mut document = Map::new();
    document.insert("vhosts".into(), json!([{"name": vhost}]));
    if users == Users::WithoutPassword {
        let user = |role: Role| {
            json!({
                "name": role.user(),
                "password_hash": "",
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": [],
            })
        };
        let permission = |role: Role| {
            let rights = role.rights();
            json!({
                "user": role.user(),
                "vhost": vhost,
                "configure": rights.configure,
                "write": rights.write,
                "read": rights.read,
            })
        };
        document.insert("users".into(), Role::ALL.map(user).into());
        document.insert("permissions".into(), Role::ALL.map(permission).into());
    }
    topology.define(vhost, &mut document);
    Value::Object(document)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::topology::Shape;

    #[test]
    fn every_exchange_and_queue_is_defined_and_every_queue_can_be_reached() {
        let shape = Shape {
            delays: vec![Duration::from_secs(5)],
            lease: Duration::from_secs(60),
            retention: Duration::from_secs(86_400),
        };
        let topology = Topology::new(&shape);
        let document = definitions(&topology, "v", Users::None);
        assert!(document.get("users").is_none() && document.get("permissions").is_none());
        let names = |key: &str| -> Vec<_> {
            document[key].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect()
        };
        assert_eq!((names("exchanges"), names("queues")), topology.names());
        for queue in names("queues") {
            let bindings = document["bindings"].as_array().unwrap();
            assert!(bindings.iter().any(|binding| binding["destination"] == queue), "{queue}");
        }
    }
}
