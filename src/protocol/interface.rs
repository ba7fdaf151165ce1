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
error ExpectedMore ()
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
  held_until: ?string,
  outdated: ?bool,
  says: ?string,
  doing: ?string,
  adopted: bool,
  healthy: ?bool,
  restart_in_ms: ?int,
  description: ?string,
  labels: [string]string,
  awaits_connection: ?bool,
  awaits_held: ?bool,
  next_run: ?string,
  last_run: ?string,
  settled: bool
)

# A unit file: its absolute path, and its text (or its bytes as numbers)
type File (path: string, text: string)

# What an apply does to one unit: remove, stop, restart, live, start or create
type Change (
  unit: string, effect: string, fields: []object, because: ?string, rolling: ?int, down_ms: ?int,
  held: ?string
)

# What a plan was made from: the generation, and the phase of each instance that it touches
type Basis (generation: int, phases: [string]string)

# One change of what is applied: cause is apply, rollback or revert. While it waits to be confirmed
# it says until when
type Record (
  generation: int, before: int, at_us: int, by: string, message: string, cause: string,
  source: ?string, to: ?int, current: bool, confirm_until_us: ?int
)

# What a source said when it was applied at a generation
type Revision (source: string, generation: int, units: []string, files: []File)

# This opm
method Info() -> (
  version: string, pid: int, program: ?string, generation: int, applied: int, run_dir: string,
  state_dir: string, log_dir: string, shutting_down: bool
)

# Instances of the named units, or of all
method List(units: []string, internal: ?bool) -> (instances: []Instance)

# What is wanted of a unit: its spec with every default, source, hold and epoch; with origin also
# the file and line that gave each key
method Show(unit: string, origin: ?bool) -> (unit: object)

# What applying a source would do, or only these units of it. Where dir, or else the source, is a
# directory by its path, profiles chooses files that are laid over units; sets are settings of the
# form UNIT.KEY=VALUE, laid over all else
method Plan(
  source: string, files: []File, dir: ?string, profiles: ?[]string, sets: ?[]string,
  only: ?[]string, rolling: ?int
) -> (
  changes: []Change, generation: int, units: []string, warnings: string, basis: Basis
)

# Make a source what these files say. Answered when the new state is saved. With confirm_ms it is
# taken back unless Confirm follows in time; who says with confirms_itself that it will follow where
# all comes up is refused while another trial goes on. With a basis it is refused where things have moved.
# Of the instances of a unit so many are away at a time as rolling says
method Apply(
  source: string, files: []File, dir: ?string, profiles: ?[]string, sets: ?[]string,
  only: ?[]string, rolling: ?int, message: ?string, confirm_ms: ?int,
  confirms_itself: ?bool, basis: ?Basis
) -> (changes: []Change, generation: int, units: []string, warnings: string, basis: Basis)

# What was applied on trial stays; what was applied at this generation, if that is in force still
method Confirm(of: ?int) -> (generation: int)

# Go back to what was applied at a generation, or before the last change; of what was applied at this
# generation, if that is in force still. To 0: nothing was
method Rollback(to: ?int, of: ?int, message: ?string, dry_run: ?bool, rolling: ?int) -> (
  to: int, changes: []Change, generation: int, units: []string
)

# What was applied, the latest first; the problem is why those before the last cannot be read
method History() -> (records: []Record, problem: ?string)

# What was applied at a generation
method Record(generation: int) -> (record: Record, sources: []Revision)

# How what was applied at one generation differs from what was at another
method Difference(from: int, to: int) -> (changes: []Change)

# Change goals. Answered when the new state is saved; Wait tells when it is reached
method Start(units: []string) -> (instances: []string)
method Stop(units: []string, reason: ?string, until_us: ?int) -> (instances: []string)
method Restart(units: []string, rolling: ?int) -> (instances: []string)
method Release(units: []string) -> (instances: []string)

# Tell running instances to read their configuration again
method Reload(units: []string) -> (instances: []string)

# Send a signal to main processes, or to all processes of the runs
method Kill(units: []string, signal: string, all: ?bool) -> (instances: []string)

# Wait until all instances are up, ready, down, completed or settled; stopped: down, and not wanted up
# again; or reloaded: the command that reloads them, if one does, has ended well. With more: every change on the way. The result is
# reached, failed, timeout, or shutdown where opm goes down; the code is that of the unit because of
# which it does. With brief the last reply leaves out instances that are at rest and are up or done,
# or not to be up
method Wait(units: []string, condition: string, timeout_ms: ?int, brief: ?bool) -> (
  result: ?string, instances: []Instance, why: ?string, code: ?int
)

# With more, which it needs: everything that happens from now on
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

# Replace the running program by the one on disk, keeping pid and children. It is answered where that
# fails; else the connection ends with the old program
method Reexec() -> ()

error PermissionDenied ()
error NoSuchUnit (reason: string)
error Refused (reason: string)
error BadUnits (diagnostics: []object, text: string)
";
