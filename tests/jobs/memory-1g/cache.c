#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MIB = 1 << 20 };

int main(void)
{
    setbuf(stdout, NULL);
    for (int i = 1; i <= 1024; i++) {
        char *block = malloc(MIB);

        if (block == NULL) {
            perror("malloc");
            return 1;
        }
        memset(block, i, MIB);
        if (i % 128 == 0)
            printf("%d MiB cached\n", i);
    }
    return 0;
}
