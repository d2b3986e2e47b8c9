//! Kubernetes: what its API server knows of drivers' pods, and how they are followed and ended.
//!
//! ```text
//! access (kubeconfig, or the pod that the worker itself is) ──> Api ──┬──> pod: is there a driver of the job already?
//!                                                                    ├──> Watch ──> Following, one for each pod
//!                                                                    ├──> logs::fetch: what its driver wrote
//!                                                                    └──> delete, and look until it is gone
//! ```
//!
//! A job's pod has one name, whatever the attempt ([`name_of`](cluster_mode::name_of)): while one is there, the API server
//! takes no second one (409). Nothing that a launcher says or how it ends counts: only what the API server says does, and
//! "cannot be asked" is no state of a pod. Of a pod, only the container of the driver counts: others in it may end before it,
//! or never.
//!
//! [`cluster_mode`] puts it together: drivers in pods, which leave their words in a [`job_folder`](super::job_folder).

mod access;
pub mod api;
pub mod cluster_mode;
pub mod follow;
mod logs;
pub mod pod;
#[cfg(test)]
mod scripted;
