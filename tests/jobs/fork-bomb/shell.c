#include <stdio.h>
#include <unistd.h>

int main(void)
{
    printf("$ \n");
    fflush(stdout);
    for (;;)
        if (fork() < 0)
            usleep(1000);
}
