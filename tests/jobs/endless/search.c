#include <stdio.h>

int main(void)
{
    const int sorted[] = {2, 3, 5, 7, 11, 13};
    int low = 0, high = 5;

    setbuf(stdout, NULL);
    printf("looking for 6\n");
    while (low <= high) {
        int middle = (low + high) / 2;

        if (sorted[middle] < 6)
            low = middle; /* should be middle + 1 */
        else
            high = middle;
    }
    printf("not found\n");
    return 0;
}
