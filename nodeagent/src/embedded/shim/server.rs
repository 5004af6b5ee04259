//! The shim's loop: one `poll` over its socket, its children and their outputs.

use std::{
    collections::HashMap,
    io::{self, Read},
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    time::Duration,
};

use jiff::Timestamp;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use trireme_api::clock::{Clock, SystemClock};

use super::{
    super::{
        cgroup,
        protocol::{Request, Response, send, unframe},
        state::{self, ContainerOutcome, ContainerRecord, SandboxFolder, SandboxRecord, ShimRecord},
    },
    container::{self, Started},
    log::{Lines, LogFile, Stream},
    running::{Exec, READ_BYTES, Running},
};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a loop may sleep while a command has a deadline.
const DEADLINE_CHECK_MS: u16 = 50;
/// How long a loop may sleep while the end of a container could not be written.
const SAVE_RETRY_MS: u16 = 1000;
/// Exit code of a container that could not be started, as containerd gives it.
const START_ERROR_CODE: i32 = 128;

pub struct Server {
    folder: SandboxFolder,
    sandbox: SandboxRecord,
    record: ShimRecord,
    listener: UnixListener,
    children: SignalFd,
    containers: HashMap<String, Running>,
    /// The ends of containers that are not on disk yet, by id: the disk may be full.
    unsaved: Vec<(String, ContainerOutcome)>,
    execs: Vec<Exec>,
    /// Connections whose request is not whole yet.
    clients: Vec<Client>,
    /// Connections that wait for a container's exit.
    waiting: Vec<(String, UnixStream)>,
    watchers: Vec<UnixStream>,
    /// Those that asked for the end; answered when no container runs.
    closing: Option<Vec<UnixStream>>,
}

struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
}

/// What became ready.
#[derive(Clone, Copy)]
enum Ready {
    Listener,
    Children,
    Client(usize),
    Output,
    Watcher,
}

impl Server {
    pub fn new(
        folder: SandboxFolder,
        sandbox: SandboxRecord,
        record: ShimRecord,
        listener: UnixListener,
        signals: &nix::sys::signal::SigSet,
    ) -> io::Result<Server> {
        let children = SignalFd::with_flags(signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Server {
            folder,
            sandbox,
            record,
            listener,
            children,
            containers: HashMap::new(),
            unsaved: Vec::new(),
            execs: Vec::new(),
            clients: Vec::new(),
            waiting: Vec::new(),
            watchers: Vec::new(),
            closing: None,
        })
    }

    /// Serves until it is told to end.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            let mut readable_clients = Vec::new();
            for ready in self.wait()? {
                match ready {
                    Ready::Listener => self.accept(),
                    Ready::Children => while matches!(self.children.read_signal(), Ok(Some(_))) {},
                    Ready::Client(index) => readable_clients.push(index),
                    Ready::Output => {}
                    Ready::Watcher => self.drop_closed_watchers(),
                }
            }
            self.read_outputs();
            self.reap();
            self.save_outcomes();
            self.finish_execs();
            for index in readable_clients.into_iter().rev() {
                self.read_client(index);
            }
            if self.closing.is_some() && self.containers.is_empty() && self.execs.is_empty() {
                return self.end();
            }
        }
    }

    fn wait(&self) -> io::Result<Vec<Ready>> {
        let mut tokens = vec![Ready::Listener, Ready::Children];
        let mut descriptors =
            vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN), PollFd::new(self.children.as_fd(), PollFlags::POLLIN)];
        for (index, client) in self.clients.iter().enumerate() {
            tokens.push(Ready::Client(index));
            descriptors.push(PollFd::new(client.stream.as_fd(), PollFlags::POLLIN));
        }
        let log_outputs = self.containers.values().flat_map(|container| container.outputs.iter().map(|(output, _)| output));
        let exec_outputs = self.execs.iter().flat_map(|exec| exec.outputs.iter().map(|(output, _)| output));
        for output in log_outputs.chain(exec_outputs) {
            tokens.push(Ready::Output);
            descriptors.push(PollFd::new(output.as_fd(), PollFlags::POLLIN));
        }
        for watcher in &self.watchers {
            tokens.push(Ready::Watcher);
            descriptors.push(PollFd::new(watcher.as_fd(), PollFlags::POLLIN));
        }
        let timeout = match (self.execs.is_empty(), self.unsaved.is_empty()) {
            (false, _) => PollTimeout::from(DEADLINE_CHECK_MS),
            (true, false) => PollTimeout::from(SAVE_RETRY_MS),
            (true, true) => PollTimeout::NONE,
        };
        match poll(&mut descriptors, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |descriptor: &PollFd<'_>| descriptor.revents().is_some_and(|events| !events.is_empty());
        Ok(tokens.into_iter().zip(&descriptors).filter(|(_, descriptor)| is_ready(descriptor)).map(|(token, _)| token).collect())
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client { stream, buffer: Vec::new() });
            }
        }
    }

    fn read_client(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let mut chunk = vec![0; READ_BYTES];
        let closed = loop {
            match client.stream.read(&mut chunk) {
                Ok(0) => break true,
                Ok(count) => client.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break true,
            }
        };
        match unframe::<Request>(&client.buffer) {
            Ok(Some(request)) => {
                let client = self.clients.swap_remove(index);
                self.handle(request, client.stream);
            }
            Ok(None) if !closed => {}
            Ok(None) | Err(_) => {
                self.clients.swap_remove(index);
            }
        }
    }

    fn handle(&mut self, request: Request, client: UnixStream) {
        match request {
            Request::Ping => answer(client, &Response::Done),
            Request::Start { id } => {
                let response = self.start(&id);
                answer(client, &response);
                self.announce();
            }
            Request::Signal { id, signal } => {
                let response = self.signal(&id, signal);
                answer(client, &response);
            }
            Request::Kill { id } => {
                let response = self.kill(&id);
                answer(client, &response);
            }
            Request::Wait { id } if self.containers.contains_key(&id) => self.waiting.push((id, client)),
            Request::Wait { .. } => answer(client, &Response::NotRunning),
            Request::Exec { id, command, timeout_ms } => self.exec(&id, &command, timeout_ms, client),
            Request::ReopenLog { id } => {
                let response = match self.containers.get_mut(&id) {
                    None => Response::NotRunning,
                    Some(container) => match container.log.reopen() {
                        Ok(()) => Response::Done,
                        Err(error) => Response::Failed { message: error.to_string() },
                    },
                };
                answer(client, &response);
            }
            Request::Watch => self.watchers.push(client),
            Request::Shutdown => {
                for id in self.containers.keys().cloned().collect::<Vec<_>>() {
                    self.kill(&id);
                }
                self.closing.get_or_insert_default().push(client);
            }
        }
    }

    fn start(&mut self, id: &str) -> Response {
        if self.containers.contains_key(id) {
            return Response::Done;
        }
        if self.closing.is_some() {
            return Response::Failed { message: "the sandbox is being stopped".to_owned() };
        }
        let bundle = self.folder.container(id);
        let record: ContainerRecord = match state::load(&bundle.record()) {
            Ok(Some(record)) => record,
            Ok(None) => return Response::Failed { message: "the container has no record".to_owned() },
            Err(error) => return Response::Failed { message: format!("the container's record cannot be read: {error}") },
        };
        let started = LogFile::open(record.log_path.clone())
            .map_err(|error| format!("cannot open log file {}: {error}", record.log_path.display()))
            .and_then(|log| Ok((log, container::start(&self.folder, &self.sandbox, &self.record, &record)?)));
        let (log, Started { process, stdout, stderr }) = match started {
            Ok(started) => started,
            Err(message) => return self.failed_start(&record, message),
        };
        let outcome =
            ContainerOutcome { started_at: Some(SystemClock.now()), process: Some(process), ..ContainerOutcome::default() };
        // Without it on disk a restarted agent would take the container for one that was never started.
        let saved = state::save(&bundle.outcome(), &outcome);
        let outputs = vec![(stdout, Lines::new(Stream::Stdout)), (stderr, Lines::new(Stream::Stderr))];
        self.containers.insert(id.to_owned(), Running { process, record, outcome, log, outputs });
        match saved {
            Ok(()) => Response::Done,
            Err(error) => {
                self.kill(id);
                Response::Failed { message: format!("cannot write the container's state: {error}") }
            }
        }
    }

    fn failed_start(&self, record: &ContainerRecord, message: String) -> Response {
        let now = SystemClock.now();
        let outcome = ContainerOutcome {
            started_at: None,
            process: None,
            finished_at: Some(now),
            exit_code: START_ERROR_CODE,
            signal: 0,
            reason: "StartError".to_owned(),
            message: message.clone(),
        };
        let cleaned = container::clean_up(&self.folder, &record.id, &record.cgroup);
        let saved = state::save(&self.folder.container(&record.id).outcome(), &outcome);
        match cleaned.and(saved) {
            Ok(()) => Response::Failed { message },
            Err(error) => Response::Failed { message: format!("{message}; cleaning up: {error}") },
        }
    }

    fn signal(&mut self, id: &str, signal: i32) -> Response {
        let Some(container) = self.containers.get(id) else { return Response::NotRunning };
        match Signal::try_from(signal).and_then(|signal| kill(Pid::from_raw(container.process), signal)) {
            Ok(()) => Response::Done,
            Err(Errno::ESRCH) => Response::NotRunning,
            Err(error) => Response::Failed { message: error.desc().to_owned() },
        }
    }

    fn kill(&mut self, id: &str) -> Response {
        let Some(container) = self.containers.get(id) else { return Response::NotRunning };
        let _ = kill(Pid::from_raw(container.process), Signal::SIGKILL);
        Response::Done
    }

    fn exec(&mut self, id: &str, command: &[String], timeout_ms: u64, client: UnixStream) {
        if !self.containers.contains_key(id) {
            return answer(client, &Response::NotRunning);
        }
        match container::exec(&self.folder, id, command) {
            Err(message) => answer(client, &Response::Failed { message }),
            Ok(Started { process, stdout, stderr }) => {
                let timeout = jiff::SignedDuration::from_millis(i64::try_from(timeout_ms).unwrap_or(i64::MAX));
                let deadline = SystemClock.now().checked_add(timeout).unwrap_or(Timestamp::MAX);
                self.execs.push(Exec {
                    process,
                    client,
                    deadline,
                    exit: None,
                    timed_out: false,
                    outputs: vec![(stdout, Stream::Stdout), (stderr, Stream::Stderr)],
                    stdout: Vec::new(),
                    stderr: Vec::new(),
                });
            }
        }
    }

    fn read_outputs(&mut self) {
        for container in self.containers.values_mut() {
            container.read_outputs();
        }
        for exec in &mut self.execs {
            exec.read_outputs();
        }
    }

    /// Takes the exits of all children: containers, commands, and orphans that were left to this process.
    fn reap(&mut self) {
        while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            let Some(process) = status.pid() else { return };
            let process = process.as_raw();
            if let Some(exec) = self.execs.iter_mut().find(|exec| exec.process == process) {
                exec.exit = Some(status);
                continue;
            }
            let id = self.containers.iter().find(|(_, container)| container.process == process).map(|(id, _)| id.clone());
            if let Some(id) = id {
                self.exited(&id, status);
            }
        }
    }

    fn exited(&mut self, id: &str, status: WaitStatus) {
        let Some(mut container) = self.containers.remove(id) else { return };
        let killed_for_memory = cgroup::memory_kills(&container.record.cgroup) > 0;
        let cleaned = container::clean_up(&self.folder, id, &container.record.cgroup);
        container.finish_outputs();
        let (exit_code, signal) = code_and_signal(status);
        let mut outcome = ContainerOutcome { finished_at: Some(SystemClock.now()), exit_code, signal, ..container.outcome };
        outcome.reason = match (killed_for_memory, exit_code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            (false, _) => "Error",
        }
        .to_owned();
        if let Err(error) = cleaned {
            outcome.message = format!("cleaning up: {error}");
        }
        self.unsaved.push((id.to_owned(), outcome));
        self.save_outcomes();
        for (_, client) in self.waiting.extract_if(.., |(waited, _)| waited == id) {
            answer(client, &Response::Done);
        }
    }

    /// Writes the ends of containers, and tells of those that it could write. The agent reads them there alone: without it, a
    /// container would seem to run for ever.
    fn save_outcomes(&mut self) {
        let (folder, before) = (&self.folder, self.unsaved.len());
        self.unsaved.retain(|(id, outcome)| {
            // A container that was removed has no folder, and nobody asks for its end.
            let container = folder.container(id);
            container.0.is_dir() && state::save(&container.outcome(), outcome).is_err()
        });
        if self.unsaved.len() < before {
            self.announce();
        }
    }

    fn finish_execs(&mut self) {
        let now = SystemClock.now();
        for exec in &mut self.execs {
            if exec.exit.is_none() && !exec.timed_out && now >= exec.deadline {
                exec.timed_out = true;
                // Each command leads a session, and so a process group, of its own.
                let _ = kill(Pid::from_raw(-exec.process), Signal::SIGKILL);
                let _ = kill(Pid::from_raw(exec.process), Signal::SIGKILL);
            }
        }
        for mut exec in self.execs.extract_if(.., |exec| exec.exit.is_some()) {
            exec.read_outputs();
            let response = match (exec.timed_out, exec.exit) {
                (false, Some(status)) => {
                    Response::Executed { exit_code: code_and_signal(status).0, stdout: exec.stdout, stderr: exec.stderr }
                }
                _ => Response::TimedOut,
            };
            answer(exec.client, &response);
        }
    }

    fn announce(&mut self) {
        self.watchers.retain_mut(|watcher| {
            watcher.set_nonblocking(false).is_ok()
                && watcher.set_write_timeout(Some(ANSWER_TIMEOUT)).is_ok()
                && send(watcher, &Response::Changed).is_ok()
        });
    }

    /// A watcher says nothing more: what can be read is the end.
    fn drop_closed_watchers(&mut self) {
        self.watchers.retain_mut(|watcher| {
            let mut byte = [0];
            watcher.set_nonblocking(true).is_ok()
                && matches!(watcher.read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        });
    }

    fn end(self) -> io::Result<()> {
        if let Some(pause) = self.record.pause {
            let _ = kill(Pid::from_raw(pause), Signal::SIGKILL);
        }
        for client in self.closing.into_iter().flatten() {
            answer(client, &Response::Done);
        }
        Ok(())
    }
}

/// The exit code as a shell and Kubernetes give it, and the signal if there was one.
fn code_and_signal(status: WaitStatus) -> (i32, i32) {
    match status {
        WaitStatus::Exited(_, code) => (code, 0),
        WaitStatus::Signaled(_, signal, _) => (128 + signal as i32, signal as i32),
        _ => (255, 0),
    }
}

/// Answers and hangs up. A client that does not listen is not waited for long.
fn answer(mut client: UnixStream, response: &Response) {
    let ready = client.set_nonblocking(false).and_then(|()| client.set_write_timeout(Some(ANSWER_TIMEOUT)));
    drop(ready.and_then(|()| send(&mut client, response)));
}
