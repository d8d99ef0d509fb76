#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

/* Leaves the process that called it: twice forked, its own session, its output still open. */
static void become_daemon(void)
{
    if (fork() != 0)
        _exit(0);
    setsid();
    if (fork() != 0)
        _exit(0);
}

int main(void)
{
    become_daemon();
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    for (;;)
        pause();
}
