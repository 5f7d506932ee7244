//! The whole simulator: its world, its accounts and its clock.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use uuid::Uuid;

use crate::args::Args;
use crate::auth::{self, Account};
use crate::clock::Clock;
use crate::reply::{Answer, Reply};
use crate::request::{Ask, Received};
use crate::world::World;

/// The whole simulator, shared by its connections.
pub struct Simulator {
    world: Mutex<World>,
    accounts: RwLock<Vec<Account>>,
    clock: RwLock<Clock>,
}

impl Simulator {
    pub fn new(args: &Args) -> Self {
        Self {
            world: Mutex::new(World::new(args, Instant::now())),
            accounts: RwLock::new(vec![args.account()]),
            clock: RwLock::new(args.clock()),
        }
    }

    /// Held only to read and change, never across an await. A panic elsewhere leaves it usable: each change is whole.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_accounts(&self, accounts: Vec<Account>) {
        *self.accounts.write().unwrap_or_else(PoisonError::into_inner) = accounts;
    }

    pub fn clock(&self) -> Clock {
        *self.clock.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_clock(&self, clock: Clock) {
        *self.clock.write().unwrap_or_else(PoisonError::into_inner) = clock;
    }

    /// Handles a call of the API; one outside `/v2` is answered, but neither limited nor logged.
    pub fn call(&self, received: &Received, request_id: Uuid) -> Reply {
        let ask = Ask::read(received);
        if !received.path.starts_with("/v2/")
            && let Some(error) = &ask.trouble
        {
            return Answer::error(error, request_id).into();
        }
        // The costly part, before the world's lock is taken.
        let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
        let clock = self.clock();
        let verified = auth::verify(received, &accounts, clock.now(), clock.tolerance());
        drop(accounts);
        self.world().take(ask, received, verified, request_id)
    }
}
