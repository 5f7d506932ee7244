//! Waiting for tasks of lanes and of jobs.

use tokio::task::{JoinError, JoinSet};

/// Waits until all of `tasks` have ended.
///
/// # Errors
/// The first error of a task; the others go on.
pub async fn all<E: 'static>(tasks: &mut JoinSet<Result<(), E>>) -> Result<(), E> {
    while let Some(task) = tasks.join_next().await {
        ended(task)?;
    }
    Ok(())
}

/// The result of a task; `Ok` if it was aborted.
///
/// # Errors
/// The task's own.
///
/// # Panics
/// The task panicked. The waiting task panics too: the broker redelivers what was in hand.
pub fn ended<E>(task: Result<Result<(), E>, JoinError>) -> Result<(), E> {
    match task {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Ok(()),
    }
}
