//! YARN: what its ResourceManager knows of applications, and how they are followed and ended by its REST interface.
//!
//! ```text
//! addresses (yarn-site.xml) ──> ResourceManager ──┬──> look: is there an application of the job already?
//!                                                 ├──> Watch ──> Following, one for each application
//!                                                 ├──> logs::fetch: what its driver wrote
//!                                                 └──> end: kill it, and wait until it is over
//! ```
//!
//! An application is known by its tag, which it carries from the moment at which the ResourceManager has it. Nothing that
//! a launcher says or how it ends counts: only what the ResourceManager says does, and "cannot be asked" is no state of
//! an application.
//!
//! [`cluster_mode`] puts it together: drivers in containers, which leave their words in a
//! [`job_folder`](super::job_folder).

pub mod cluster_mode;
pub mod configuration;
pub mod end;
pub mod find;
pub mod follow;
pub mod login;
pub mod logs;
mod reason;
pub mod resource_manager;
#[cfg(test)]
use super::scripted;
