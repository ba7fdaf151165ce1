//! The interfaces as varlink describes them. Clients read these texts by introspection.

/// Introspection.
pub const SERVICE: &str = "org.varlink.service";
/// opm's own.
pub const CONTROL: &str = "io.opm.Control";

/// The text of [`SERVICE`], <https://varlink.org/Service>.
pub const SERVICE_DESCRIPTION: &str = "\
# Introspection of this service
interface org.varlink.service

method GetInfo() -> (
  vendor: string, product: string, version: string, url: string, interfaces: []string
)
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
";

/// The text of [`CONTROL`].
pub const CONTROL_DESCRIPTION: &str = "\
# Control of opm: what is wanted, and how things are. See opm-daemon(8).
interface io.opm.Control

# How one instance of a unit is
type Instance (
  instance: string,
  unit: string,
  kind: string,
  phase: string,
  since_ms: int,
  wanted: bool,
  ready: bool,
  pid: ?int,
  restarts: int,
  last: ?string,
  code: ?int,
  why: string,
  held_by: ?string,
  says: ?string,
  doing: ?string,
  adopted: bool,
  healthy: ?bool,
  restart_in_ms: ?int,
  description: ?string,
  labels: [string]string,
  awaits_connection: ?bool,
  settled: bool
)

# A unit file: its absolute path, and its text (or its bytes as numbers)
type File (path: string, text: string)

# What an apply does to one unit: remove, restart, live or create
type Change (unit: string, effect: string, fields: []object, because: ?string, held: ?string)

# This opm
method Info() -> (
  version: string, pid: int, generation: int, run_dir: string, state_dir: string, log_dir: string,
  shutting_down: bool
)

# Instances of the named units, or of all
method List(units: []string, internal: ?bool) -> (instances: []Instance)

# What is wanted of a unit: its spec with every default, source, hold and epoch
method Show(unit: string) -> (unit: object)

# What applying a source would do. Where the source is a directory by its path, profiles chooses
# files that are laid over units; sets are settings of the form UNIT.KEY=VALUE, laid over all else
method Plan(source: string, files: []File, profiles: ?[]string, sets: ?[]string) -> (
  changes: []Change, generation: int, warnings: string
)

# Make a source what these files say. Answered when the new state is saved
method Apply(source: string, files: []File, profiles: ?[]string, sets: ?[]string) -> (
  changes: []Change, generation: int, units: []string, warnings: string
)

# Change goals. Answered when the new state is saved; Wait tells when it is reached
method Start(units: []string) -> (instances: []string)
method Stop(units: []string, reason: ?string) -> (instances: []string)
method Restart(units: []string) -> (instances: []string)
method Release(units: []string) -> (instances: []string)

# Tell running instances to read their configuration again
method Reload(units: []string) -> (instances: []string)

# Send a signal to main processes, or to all processes of the runs
method Kill(units: []string, signal: string, all: ?bool) -> (instances: []string)

# Wait until all instances are up, ready, down, completed or settled. With more: every change on
# the way. The result is reached, failed or timeout
method Wait(units: []string, condition: string, timeout_ms: ?int) -> (
  result: ?string, instances: []Instance
)

# With more: everything that happens from now on
method Events() -> (event: ?object)

# The chain of causes of how an instance is
method Why(unit: string) -> (lines: []string)

# Everything that opm decides by: desired is what is wanted, instances what is known by instance,
# now the monotonic clock in ns, shutdown_timeout in ns or null. What is in desired and instances is
# opm's own and may differ in another version; variables and commands are left out
method State() -> (state: object)

# Save the desired state now
method Save() -> (generation: int)

# Reconcile with the desired state, as at boot; returns what is under way
method Restore() -> (generation: int, pending: []string)

# Stop everything in order and end
method Shutdown() -> ()

# Replace the running program by the one on disk, keeping pid and children
method Reexec() -> ()

error PermissionDenied ()
error NoSuchUnit (reason: string)
error Refused (reason: string)
error BadUnits (diagnostics: []object, text: string)
";
