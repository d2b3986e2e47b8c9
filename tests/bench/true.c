/* A spark-submit and driver in one that does what /bin/true does, and says so: the least that a job can cost.
 * Called as spark-submit is; the report's socket is named after `--report-socket`. */
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv) {
    static const char words[] =
        "{\"message\":\"hello\",\"protocol\":1,\"pid\":1,\"python\":\"none\"}\n"
        "{\"message\":\"running\",\"function\":\"score\"}\n"
        "{\"message\":\"completed\",\"results\":null}\n";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], "--report-socket") == 0)
            strncpy(address.sun_path, argv[i + 1], sizeof address.sun_path - 1);
    int report = socket(AF_UNIX, SOCK_STREAM, 0);
    if (report < 0 || connect(report, (struct sockaddr *)&address, sizeof address) != 0)
        return 70;
    return write(report, words, sizeof words - 1) == (ssize_t)(sizeof words - 1) ? 0 : 70;
}
