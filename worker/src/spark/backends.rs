//! All ways of running, as one: a driver on this machine, or one in a cluster.
//!
//! This module must not know how either is done.

use std::sync::Arc;

use super::client_mode::ClientMode;
#[cfg(feature = "kubernetes")]
use super::kubernetes::cluster_mode::PodMode;
#[cfg(feature = "yarn")]
use super::yarn::cluster_mode::ClusterMode;
use super::{Application, Awaited, Backend, Identity, Launches, Mode, Sought, Submission, SubmitError};

/// Chooses by what is asked for.
pub struct Backends {
    client: Arc<ClientMode>,
    #[cfg(feature = "kubernetes")]
    kubernetes: PodMode,
    #[cfg(feature = "yarn")]
    yarn: ClusterMode,
}

impl Backends {
    /// The drivers of this machine by `client`, others by what their cluster is.
    #[must_use]
    pub fn new(
        client: Arc<ClientMode>,
        #[cfg(feature = "kubernetes")] kubernetes: PodMode,
        #[cfg(feature = "yarn")] yarn: ClusterMode,
    ) -> Self {
        Self {
            client,
            #[cfg(feature = "kubernetes")]
            kubernetes,
            #[cfg(feature = "yarn")]
            yarn,
        }
    }

    fn of(&self, mode: &Mode) -> &dyn Backend {
        match mode {
            Mode::Client => &*self.client,
            #[cfg(feature = "kubernetes")]
            Mode::Kubernetes(_) => &self.kubernetes,
            #[cfg(not(feature = "kubernetes"))]
            Mode::Kubernetes(_) => &super::NoCluster,
            #[cfg(feature = "yarn")]
            Mode::Yarn => &self.yarn,
            #[cfg(not(feature = "yarn"))]
            Mode::Yarn => &super::NoCluster,
        }
    }
}

impl Backend for Backends {
    fn find<'a>(
        &'a self,
        sought: &'a Sought,
    ) -> Awaited<'a, Result<Option<Box<dyn Application>>, SubmitError>> {
        self.of(&sought.mode).find(sought)
    }

    fn submit<'a>(
        &'a self,
        submission: &'a Submission,
    ) -> Awaited<'a, Result<Box<dyn Application>, SubmitError>> {
        self.of(&submission.sought.mode).submit(submission)
    }

    fn launches<'a>(
        &'a self,
        identity: &'a Identity,
        mode: &'a Mode,
    ) -> Awaited<'a, Result<Launches, SubmitError>> {
        self.of(mode).launches(identity, mode)
    }

    fn forget<'a>(
        &'a self,
        identity: &'a Identity,
        mode: &'a Mode,
        launches: &'a Launches,
    ) -> Awaited<'a, ()> {
        self.of(mode).forget(identity, mode, launches)
    }
}
