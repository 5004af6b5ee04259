//! Work inside another network namespace: on a thread of its own, since a thread's namespace stays changed.

use std::{fs::File, future::Future, path::PathBuf};

use nix::sched::{CloneFlags, setns};
use rtnetlink::Handle;

use super::NetworkError;

/// Opens a netlink connection in the namespace and does the work with it.
pub async fn inside<T, W, F>(namespace: PathBuf, work: W) -> Result<T, NetworkError>
where
    T: Send + 'static,
    W: FnOnce(Handle) -> F + Send + 'static,
    F: Future<Output = Result<T, NetworkError>>,
{
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("pod-network".to_owned())
        .spawn(move || {
            // The caller may have given up; then nobody takes the result.
            drop(sender.send(enter_and_work(&namespace, work)));
        })
        .map_err(NetworkError::io("cannot start a thread"))?;
    match receiver.await {
        Ok(result) => result,
        Err(_) => Err(NetworkError::Invalid("the work in the pod's network namespace was broken off".to_owned())),
    }
}

fn enter_and_work<T, W, F>(namespace: &PathBuf, work: W) -> Result<T, NetworkError>
where
    W: FnOnce(Handle) -> F,
    F: Future<Output = Result<T, NetworkError>>,
{
    let file = File::open(namespace).map_err(NetworkError::io(format!("cannot open {}", namespace.display())))?;
    setns(&file, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| NetworkError::io("cannot enter the pod's network namespace")(errno.into()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(NetworkError::io("cannot start a runtime in the pod's network namespace"))?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::io("cannot open netlink"))?;
        let connection = tokio::spawn(connection);
        let result = work(handle).await;
        connection.abort();
        result
    })
}
