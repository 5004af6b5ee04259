//! Stock kubectl, the machine's own and an old one.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// One kubectl with one cluster's kubeconfig.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    context: String,
    /// Its home folder, so that a discovery cache of another cluster is not used.
    home: PathBuf,
}

impl Kubectl {
    /// The kubectl in the `PATH`.
    pub fn of_machine(kubeconfig: PathBuf, home: &Path) -> Self {
        Self { program: PathBuf::from("kubectl"), kubeconfig, context: "trireme".to_owned(), home: home.join("kubectl-home") }
    }

    /// Debian's kubectl 1.20, which is fetched into the cache folder when it is not there.
    ///
    /// # Panics
    /// When it cannot be fetched.
    pub fn old(kubeconfig: PathBuf, home: &Path) -> Self {
        let home = home.join("kubectl-old-home");
        Self { program: old_program(), kubeconfig, context: "trireme".to_owned(), home }
    }

    /// The same against another server.
    pub fn context(&self, context: &str) -> Self {
        Self { context: context.to_owned(), ..self.clone() }
    }

    /// A command that is ready to be run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env("HOME", &self.home).env("KUBECONFIG", &self.kubeconfig).arg("--context").arg(&self.context);
        command.args(arguments);
        command
    }

    /// Runs a command that must succeed and returns what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with_input(arguments, "")
    }

    /// As [`Kubectl::ok`], with a manifest on standard input (`-f -`).
    ///
    /// # Panics
    /// When it fails.
    pub fn ok_with_input(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success(),
            "{} {}: {}\n{stdout}{stderr}",
            self.program.display(),
            arguments.join(" "),
            output.status
        );
        stdout
    }

    /// Runs a command that must be refused and returns the reason that it printed.
    ///
    /// # Panics
    /// When it succeeds.
    pub fn refused(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input);
        assert!(!output.status.success(), "{} {} was not refused", self.program.display(), arguments.join(" "));
        text(&output.stderr)
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When kubectl cannot be run at all.
    pub fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.command(arguments);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap_or_else(|error| panic!("cannot run {}: {error}", self.program.display()));
        if let Some(mut stdin) = child.stdin.take() {
            // A command that ends without reading closes its end: its own output says why.
            let _ = stdin.write_all(input.as_bytes());
        }
        child.wait_with_output().expect("the command's output is readable")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `TRIREME_KUBECTL_OLD`, else the one in the cache folder.
fn old_program() -> PathBuf {
    if let Some(named) = std::env::var_os("TRIREME_KUBECTL_OLD") {
        return PathBuf::from(named);
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache"))).expect("a home folder is known");
    let folder = cache.join("trireme/kubectl-old");
    let program = folder.join("usr/bin/kubectl");
    if !program.is_file() {
        fs::create_dir_all(&folder).expect("the cache folder can be written");
        let script = "apt-get download kubernetes-client && dpkg -x kubernetes-client_*.deb . && rm kubernetes-client_*.deb";
        let output = Command::new("sh").args(["-c", script]).current_dir(&folder).output().expect("sh runs");
        assert!(program.is_file(), "cannot fetch Debian's package kubernetes-client: {}", text(&output.stderr));
    }
    program
}
