/* As many processes as it is allowed, all forking on, none ending on a signal it can ignore. Only for the sandbox. */
#include <signal.h>
#include <unistd.h>

int main(void)
{
    if (getuid() == 0 || access("/job", W_OK) != 0)
        return 1; /* not in the sandbox, where this would take the machine down */
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_IGN);
    for (;;)
        if (fork() < 0)
            usleep(100);
}
