#include <stdio.h>

int main(void)
{
    printf("almost done\n")
    return 0;
}
