# The first column of a table and those headed by one of `names`, in that order, aligned; ? where there is none.
BEGIN {
    print "# E enforced, S substituted, A absent, - skipped, ! no sandbox; scripts/test-environments compares"
    wanted = split(names, name)
}
/^$|^#/ { next }
!headed { for (i = 2; i <= NF; i++) at[$i] = i; headed = 1 }
{
    line = sprintf("%-17s", $1)
    for (i = 1; i <= wanted; i++)
        line = line "  " sprintf("%-" length(name[i]) "s", name[i] in at ? $at[name[i]] : "?")
    sub(/ +$/, "", line)
    print line
}
