/* Prints as many GiB as asked for, in lines of 64 bytes. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char lines[1 << 16];

int main(int argc, char **argv)
{
    long left = argc > 1 ? atol(argv[1]) << 14 : 0;

    memset(lines, 'x', sizeof lines);
    for (size_t end = 63; end < sizeof lines; end += 64)
        lines[end] = '\n';
    for (; left > 0; left--)
        for (size_t at = 0; at < sizeof lines;) {
            ssize_t n = write(STDOUT_FILENO, lines + at, sizeof lines - at);

            if (n < 0)
                return 1;
            at += (size_t)n;
        }
    return 0;
}
