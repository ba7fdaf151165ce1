//! What a machine is like, and all that can go wrong in it.

/// How a supervisor's life is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doom {
    /// `kill -9`.
    Kill,
    /// A bug of opm's own.
    Panic,
    /// The whole machine.
    PowerLoss,
}

/// A fault that is planted to see whether the checks find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A process runs its program as soon as it exists.
    NoGate,
    /// The ledger is written when the process runs already.
    LedgerAfterGo,
    /// A pid is taken for an identity.
    PidIsIdentity,
    /// A kill reaches the first process and not its children.
    LeaderOnly,
    /// Nothing is synced, and all is said to be.
    NoSync,
    /// A save that failed is said to have worked.
    SaveErrorsIgnored,
    /// A part of a ledger line is not taken back.
    TornLedger,
    /// Deadlines are on the wall clock.
    WallDeadlines,
    /// What a broken cycle lost is not looked for.
    NoRecovery,
    /// A second supervisor is let in.
    NoLock,
    /// A restore forgets who was stopped by hand.
    HoldsForgotten,
    /// A monitor beside the reconciler starts what it sees dead, as in the program opm came from.
    Monitor,
    /// A shutdown forgets the order.
    NoOrder,
    /// A second look at an ended task takes it for one that never ran.
    EndsNotKept,
}

/// What a machine is like.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::struct_excessive_bools, reason = "a list of switches, one by one")]
pub(crate) struct Setting {
    /// Whether the supervisor is PID 1: all ends with it.
    pub(crate) is_pid_one: bool,
    /// Whether pidfds have numbers of their own.
    pub(crate) has_inodes: bool,
    /// Whether the kernel tells how a process ended that is not ours.
    pub(crate) tells_foreign: bool,
    /// Whether there is a log keeper.
    pub(crate) has_keeper: bool,
    /// Whether what happened is told out of order, and some of it twice.
    pub(crate) is_unordered: bool,
    /// How much later it is told, at most, in milliseconds.
    pub(crate) delay_max: u64,
    /// How many starts may be before their exec at once, where that is limited.
    pub(crate) slots: Option<usize>,
    /// What is planted.
    pub(crate) fault: Option<Fault>,
}

/// A kind of trouble; each world has some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    Kill,
    Doom,
    Panic,
    PowerLoss,
    Reexec,
    Second,
    Freeze,
    WallStep,
    Strangers,
    FullDisk,
    DiskError,
    NoForks,
    Hidden,
    Shutdown,
}

impl Trouble {
    pub(crate) const ALL: [Self; 14] = [
        Self::Kill,
        Self::Doom,
        Self::Panic,
        Self::PowerLoss,
        Self::Reexec,
        Self::Second,
        Self::Freeze,
        Self::WallStep,
        Self::Strangers,
        Self::FullDisk,
        Self::DiskError,
        Self::NoForks,
        Self::Hidden,
        Self::Shutdown,
    ];
}
