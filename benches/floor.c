/* The programs that benches/machine.py measures with.
 *
 *   floor service FIFO ID       writes a stamp and sleeps for ever: the service under test
 *   floor loop FIFO COUNT       starts COUNT services by vfork and exec, and again whichever dies, and
 *                               does nothing else, until SIGTERM: no supervisor can be faster
 *   floor stamp FIFO CMD ARG…   writes a stamp and becomes CMD
 *   floor ACT:FIFO:ID …         the same as `floor ACT FIFO ID`, as the interpreter of a script without a shell
 *   floor flash FIFO ID         writes a stamp and ends: a service that cannot stay up
 *   floor orphans FIFO COUNT    leaves COUNT processes behind, which end all at once; then waits until
 *                               nobody but pid 1 and itself is left, and writes a stamp
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* One write of so few bytes into a pipe is whole, pipe(7). */
struct stamp {
    int32_t id;
    int32_t pid;
    int64_t nanos;
};

static void write_stamp(const char *fifo, int32_t id)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    struct stamp stamp = { id, getpid(), (int64_t)now.tv_sec * 1000000000 + now.tv_nsec };
    int fd = open(fifo, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, &stamp, sizeof stamp) != sizeof stamp)
        _exit(90);
    close(fd);
}

static char *self, *fifo;

static pid_t start(int id)
{
    char text[16];
    snprintf(text, sizeof text, "%d", id);
    char *argv[] = { self, "service", fifo, text, NULL };
    pid_t pid = vfork();
    if (pid == 0) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execv(self, argv);
        _exit(91);
    }
    return pid;
}

static int loop(int count)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    pid_t *pids = calloc(count, sizeof *pids);
    for (int id = 0; id < count; id++) {
        if ((pids[id] = start(id)) < 0)
            return 93;
    }
    for (int signal; sigwait(&set, &signal) == 0 && signal == SIGCHLD;) {
        for (pid_t dead; (dead = waitpid(-1, NULL, WNOHANG)) > 0;) {
            for (int id = 0; id < count; id++) {
                if (pids[id] == dead && (pids[id] = start(id)) < 0)
                    return 93;
            }
        }
    }
    for (int id = 0; id < count; id++)
        kill(pids[id], SIGTERM);
    while (wait(NULL) > 0) { }
    return 0;
}

/* How many processes there are, by the directories of /proc that are numbers. */
static int processes(void)
{
    DIR *proc = opendir("/proc");
    int count = 0;
    for (struct dirent *entry; proc && (entry = readdir(proc));)
        count += entry->d_name[0] >= '1' && entry->d_name[0] <= '9';
    closedir(proc);
    return count;
}

static int orphans(int count)
{
    int gate[2];
    char byte;
    int before = processes();
    if (pipe2(gate, O_CLOEXEC) != 0)
        return 94;
    pid_t parent = fork();
    if (parent == 0) {
        close(gate[1]);
        for (int n = 0; n < count; n++) {
            pid_t pid = fork();
            if (pid < 0)
                _exit(95);
            if (pid == 0) {
                /* The end of the pipe is the sign for all. */
                _exit(read(gate[0], &byte, 1) < 0);
            }
        }
        _exit(0);
    }
    int status;
    if (waitpid(parent, &status, 0) != parent || status != 0)
        return 96;
    write_stamp(fifo, 0);
    close(gate[1]);
    while (processes() > before)
        usleep(1000);
    write_stamp(fifo, 1);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc >= 3 && strchr(argv[1], ':')) {
        char *act = strtok(argv[1], ":"), *path = strtok(NULL, ":"), *id = strtok(NULL, ":");
        char *words[] = { argv[0], act, path, id, NULL };
        return id ? main(4, words) : 2;
    }
    if (argc == 4 && strcmp(argv[1], "service") == 0) {
        write_stamp(argv[2], atoi(argv[3]));
        for (;;)
            pause();
    }
    if (argc == 4 && strcmp(argv[1], "loop") == 0) {
        self = argv[0];
        fifo = argv[2];
        return loop(atoi(argv[3]));
    }
    if (argc == 4 && strcmp(argv[1], "flash") == 0) {
        write_stamp(argv[2], atoi(argv[3]));
        return 1;
    }
    if (argc == 4 && strcmp(argv[1], "orphans") == 0) {
        fifo = argv[2];
        return orphans(atoi(argv[3]));
    }
    if (argc >= 4 && strcmp(argv[1], "stamp") == 0) {
        write_stamp(argv[2], -1);
        execv(argv[3], argv + 3);
        return 92;
    }
    return 2;
}
