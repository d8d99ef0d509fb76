#include <stdio.h>

enum { MIB = 1 << 20, PER_LOG = 32 };

int main(void)
{
    static char step[MIB];
    char name[32];

    setbuf(stdout, NULL);
    for (int log = 0; log < 64; log++) {
        FILE *file;

        snprintf(name, sizeof name, "step-%02d.log", log);
        file = fopen(name, "w");
        if (file == NULL) {
            perror(name);
            return 1;
        }
        for (int i = 0; i < PER_LOG; i++)
            if (fwrite(step, MIB, 1, file) != 1) {
                perror(name);
                return 1;
            }
        if (fclose(file) != 0) {
            perror(name);
            return 1;
        }
        printf("%d MiB of logs\n", (log + 1) * PER_LOG);
    }
    return 0;
}
