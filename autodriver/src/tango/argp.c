/* The command line of the Tango form as glibc's argp reads it: what ours is compared with. Prints what it
   read. With EXTENDED it has the options of the forks too. */
#include <argp.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

static unsigned long numbers[5];
static const char *zone = "none", *directory;
static int stream;

static void number(int which, const char *name, const char *text, struct argp_state *state) {
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, 0);
    if (errno != 0 || *end != '\0' || value > UINT_MAX)
        argp_failure(state, 1, 0, "The argument to %s must be a nonnegative integer", name);
    numbers[which] = value;
}

static error_t option(int key, char *arg, struct argp_state *state) {
    switch (key) {
    case 'u': number(0, "nproc", arg, state); break;
    case 'f': number(1, "fsize", arg, state); break;
    case 't': number(2, "timeout", arg, state); break;
    case 'o': number(3, "osize", arg, state); break;
    case 'i': number(4, "timestamp-interval", arg, state); break;
    case 'z': zone = arg; break;
    case 's': stream = 1; break;
    case ARGP_KEY_ARG:
        if (state->arg_num > 0)
            argp_error(state, "Too many arguments");
        directory = arg;
        break;
    case ARGP_KEY_END:
        if (state->arg_num < 1)
            argp_error(state, "Too few arguments");
        break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

int main(int argc, char **argv) {
    static const struct argp_option options[] = {
        {"nproc", 'u', "N", 0, "Most processes and threads of the job", 0},
        {"fsize", 'f', "BYTES", 0, "Largest file that the job may write", 0},
        {"timeout", 't', "SECS", 0, "Longest time that the job may take", 0},
        {"osize", 'o', "BYTES", 0, "Most output that is returned", 0},
#ifdef EXTENDED
        {"timestamp-interval", 'i', "SECS", 0, "Insert the time into the output this often", 0},
        {"timezone", 'z', "TZ", 0, "Time zone of these times", 0},
        {"stream", 's', "X", OPTION_ARG_OPTIONAL, "Return output as it comes, and the status last", 0},
#endif
        {0}};
    static const struct argp parser = {options, option, "DIRECTORY", "Runs make on a job directory.", 0, 0, 0};
    argp_err_exit_status = 1;
    argp_parse(&parser, argc, argv, 0, 0, 0);
    printf("%lu %lu %lu %lu %lu %s %d %s\n", numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], zone,
           stream, directory);
    return 0;
}
