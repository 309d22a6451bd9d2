//! `vault rotate`: everything sealed comes under the newest key, while the fleet works.
//!
//! The invariant: a value is replaced only by the same value under another seal, and only where it still is
//! what was read; a refresh that comes between wins, and its result is looked at again.

use scoped_futures::ScopedFutureExt as _;
use serde::Serialize;
use uuid::Uuid;

use super::{Vault, VaultError, token_place};
use crate::oauth::verifier_place;
use crate::store::{StoreError, connection, link};

const CHUNK: i64 = 100;

/// What a rotation did.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Rotation {
    pub resealed: u64,
    pub already: u64,
    /// Connections whose seal no key of the list opens.
    pub unreadable: Vec<Uuid>,
}

impl Vault {
    pub async fn rotate(&self) -> Result<Rotation, VaultError> {
        let mut rotation = Rotation::default();
        let store = self.store();
        let mut after = Uuid::nil();
        loop {
            let chunk = store
                .read(|tx| async move { connection::sealed_after(tx, after, CHUNK).await }.scope_boxed())
                .await?;
            let Some((last, _)) = chunk.last() else { break };
            after = *last;
            for (id, sealed) in chunk {
                self.reseal(id, sealed, &mut rotation).await?;
            }
        }
        self.rotate_links(&mut rotation).await?;
        Ok(rotation)
    }

    async fn reseal(&self, id: Uuid, mut sealed: Vec<u8>, rotation: &mut Rotation) -> Result<(), VaultError> {
        loop {
            let again = match self.keys().reseal(token_place(&id), &sealed) {
                Ok(Some(again)) => again,
                Ok(None) => {
                    rotation.already += 1;
                    return Ok(());
                }
                Err(error) => {
                    tracing::error!(connection = %id, %error, "cannot be sealed again");
                    rotation.unreadable.push(id);
                    return Ok(());
                }
            };
            let (old, new) = (&sealed, &again);
            let now_there = self
                .store()
                .transaction("vault.reseal", |tx| {
                    async move {
                        if connection::reseal(tx, id, old, new).await? {
                            return Ok(None);
                        }
                        Ok::<_, StoreError>(Some(
                            connection::sealed(tx, id).await?.and_then(|row| row.refresh_token),
                        ))
                    }
                    .scope_boxed()
                })
                .await?;
            match now_there {
                None => {
                    rotation.resealed += 1;
                    return Ok(());
                }
                // Disconnected meanwhile: nothing is left to seal.
                Some(None) => return Ok(()),
                Some(Some(newer)) => sealed = newer,
            }
        }
    }

    /// Verifiers never change, so one try each is enough.
    async fn rotate_links(&self, rotation: &mut Rotation) -> Result<(), VaultError> {
        let mut after = Uuid::nil();
        loop {
            let chunk = self
                .store()
                .read(|tx| async move { link::sealed_after(tx, after, CHUNK).await }.scope_boxed())
                .await?;
            let Some((last, _)) = chunk.last() else { return Ok(()) };
            after = *last;
            for (id, sealed) in chunk {
                // A link that cannot be opened is made again by whoever needs it.
                let Ok(Some(again)) = self.keys().reseal(verifier_place(&id), &sealed) else { continue };
                let (old, new) = (&sealed, &again);
                self.store()
                    .transaction("vault.reseal", |tx| {
                        async move { link::reseal(tx, id, old, new).await }.scope_boxed()
                    })
                    .await?;
                rotation.resealed += 1;
            }
        }
    }
}
