/* A stand-in for NVIDIA's management library. It does what the file named by FAKE_NVML_CONTROL says at each call, one
 * "NAME=VALUE" on a line, or where there is none the environment:
 *
 *   FAKE_NVML_DEVICES   number of devices (default 0)
 *   FAKE_NVML_MIG       index of the device that is in MIG mode and has two MIG devices, in slots 1 and 4
 *   FAKE_NVML_FAIL      "FUNCTION:CODE" fails with a code, "FUNCTION:CODE:INDEX" on one device only
 *   FAKE_NVML_HANG      function that never returns
 *   FAKE_NVML_CRASH     function that dies of a segmentation fault
 *   FAKE_NVML_PRINT     function that prints on standard output
 *   FAKE_NVML_USED      bytes used on device 0
 *   FAKE_NVML_TOTAL     bytes of memory of each device
 *   FAKE_NVML_RESERVED  bytes that the driver keeps of them, which only the second form of the query reports
 *   FAKE_NVML_V1        if not 0, there is no second form
 *   FAKE_NVML_NAME      name of each device
 *   FAKE_NVML_BADNAME   index of the device whose name is not UTF-8
 *   FAKE_NVML_SAMEUUID  if not 0, all devices have one uuid
 *   FAKE_NVML_MODE      compute mode of each device
 *   FAKE_NVML_BROKENROW if not 0, a row of memory could not be remapped
 *   FAKE_NVML_PENDINGROW, FAKE_NVML_PENDINGPAGE   if not 0, a row or a page is taken out of use at the next reset
 *   FAKE_NVML_RETIRED   number of retired pages, of each cause
 *   FAKE_NVML_ECC       current and pending mode as one number: 1 is off and then on, 11 on and on
 *   FAKE_NVML_VIRTUAL   virtualization mode of each device
 *   FAKE_NVML_PARENTNOPERM  if not 0, the memory of a GPU may not be read, only that of its MIG devices
 *   FAKE_NVML_MIGFAILSLOT   slot of the MIG device whose memory cannot be read, with error FAKE_NVML_MIGFAILCODE
 *
 * Written from the documented interface of NVML; structures are laid out as there.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUCCESS 0
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define NO_INDEX -1

typedef struct { char busIdLegacy[16]; unsigned domain, bus, device, pciDeviceId, pciSubSystemId; char busId[32]; } pci_info;
typedef struct { unsigned long long total, free, used; } memory_info;

/* A handle is 1 + index for a GPU, 1000 + 10 * index + slot for a MIG device. */
static int is_mig(long handle) { return handle >= 1000; }
static int index_of(long handle) { return is_mig(handle) ? (handle - 1000) / 10 : handle - 1; }
static int slot_of(long handle) { return (handle - 1000) % 10; }

/* The value stays valid for the next seven calls. */
static const char *setting(const char *name) {
    static char lines[8][256];
    static unsigned next;
    const char *control = getenv("FAKE_NVML_CONTROL");
    size_t length = strlen(name);
    if (!control) return getenv(name);
    FILE *file = fopen(control, "r");
    char *line = lines[next++ % 8];
    const char *value = NULL;
    while (file && !value && fgets(line, 256, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, name, length) && line[length] == '=') value = line + length + 1;
    }
    if (file) fclose(file);
    return value;
}
static int number(const char *name, int otherwise) { const char *value = setting(name); return value ? atoi(value) : otherwise; }
static int named(const char *variable, const char *function) { const char *value = setting(variable); return value && !strcmp(value, function); }

static int enter(const char *function, int index) {
    const char *fail = setting("FAKE_NVML_FAIL");
    size_t length = strlen(function);
    if (named("FAKE_NVML_PRINT", function)) { puts("a library that talks"); fflush(stdout); }
    if (named("FAKE_NVML_CRASH", function)) { signal(SIGSEGV, SIG_DFL); raise(SIGSEGV); }
    while (named("FAKE_NVML_HANG", function)) pause();
    if (fail && !strncmp(fail, function, length) && fail[length] == ':') {
        int code = 0, only = index;
        sscanf(fail + length + 1, "%d:%d", &code, &only);
        if (only == index) return code;
    }
    return SUCCESS;
}
#define ENTER(index) do { int code = enter(__func__, index); if (code) return code; } while (0)

int nvmlInitWithFlags(unsigned flags) { ENTER(NO_INDEX); return SUCCESS; }
int nvmlShutdown(void) { ENTER(NO_INDEX); return SUCCESS; }
const char *nvmlErrorString(int code) { return "an error of the fake library"; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    ENTER(NO_INDEX); snprintf(version, length, "555.42.06"); return SUCCESS;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) { ENTER(NO_INDEX); *version = 12050; return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { ENTER(NO_INDEX); *count = number("FAKE_NVML_DEVICES", 0); return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, long *handle) {
    ENTER((int)index);
    if ((int)index >= number("FAKE_NVML_DEVICES", 0)) return INVALID_ARGUMENT;
    *handle = index + 1;
    return SUCCESS;
}
int nvmlDeviceGetUUID(long handle, char *uuid, unsigned length) {
    ENTER(index_of(handle));
    if (number("FAKE_NVML_SAMEUUID", 0)) { snprintf(uuid, length, "GPU-00000000-0000-4000-8000-00000000dead"); return SUCCESS; }
    if (is_mig(handle)) snprintf(uuid, length, "MIG-%08d-0000-4000-8000-00000000000%d", index_of(handle), slot_of(handle));
    else snprintf(uuid, length, "GPU-%08d-0000-4000-8000-000000000000", index_of(handle));
    return SUCCESS;
}
int nvmlDeviceGetName(long handle, char *name, unsigned length) {
    ENTER(index_of(handle));
    if (number("FAKE_NVML_BADNAME", NO_INDEX) == index_of(handle)) { snprintf(name, length, "\xf8\x95\xa0\x81"); return SUCCESS; }
    if (setting("FAKE_NVML_NAME")) { snprintf(name, length, "%s", setting("FAKE_NVML_NAME")); return SUCCESS; }
    snprintf(name, length, is_mig(handle) ? "NVIDIA A100-SXM4-40GB MIG 3g.20gb" : "NVIDIA A100-SXM4-40GB");
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(long handle, memory_info *memory) {
    ENTER(index_of(handle));
    const char *used = setting("FAKE_NVML_USED");
    if (!is_mig(handle) && number("FAKE_NVML_PARENTNOPERM", 0)) return 4;
    if (is_mig(handle) && number("FAKE_NVML_MIGFAILSLOT", NO_INDEX) == slot_of(handle)) return number("FAKE_NVML_MIGFAILCODE", 999);
    memory->total = is_mig(handle) ? 20ULL << 30 : 40ULL << 30;
    if (setting("FAKE_NVML_TOTAL")) memory->total = strtoull(setting("FAKE_NVML_TOTAL"), NULL, 10);
    memory->used = used && index_of(handle) == 0 ? strtoull(used, NULL, 10) : 0;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_info_v2;
int nvmlDeviceGetMemoryInfo_v2(long handle, memory_info_v2 *m) {
    if (number("FAKE_NVML_V1", 0)) return 13;
    memory_info one; int code = nvmlDeviceGetMemoryInfo(handle, &one); if (code) return code;
    const char *reserved = setting("FAKE_NVML_RESERVED");
    m->total = one.total; m->reserved = reserved ? strtoull(reserved, NULL, 10) : 0; m->used = one.used; m->free = m->total - m->reserved - m->used;
    return SUCCESS;
}
int nvmlDeviceGetPciInfo_v3(long handle, pci_info *info) {
    ENTER(index_of(handle));
    if (is_mig(handle)) return NOT_SUPPORTED;
    memset(info, 0, sizeof *info);
    info->bus = 0x10 + index_of(handle);
    info->pciDeviceId = 0x20b010de;
    snprintf(info->busId, sizeof info->busId, "00000000:%02X:00.0", info->bus);
    return SUCCESS;
}
int nvmlDeviceGetCudaComputeCapability(long handle, int *major, int *minor) {
    ENTER(index_of(handle)); *major = 8; *minor = 0; return SUCCESS;
}
int nvmlDeviceGetMigMode(long handle, unsigned *current, unsigned *pending) {
    ENTER(index_of(handle));
    *current = *pending = number("FAKE_NVML_MIG", NO_INDEX) == index_of(handle);
    return SUCCESS;
}
int nvmlDeviceGetMaxMigDeviceCount(long handle, unsigned *count) { ENTER(index_of(handle)); *count = 7; return SUCCESS; }
int nvmlDeviceGetMigDeviceHandleByIndex(long handle, unsigned slot, long *mig) {
    ENTER(index_of(handle));
    if (slot != 1 && slot != 4) return NOT_FOUND;
    *mig = 1000 + 10 * index_of(handle) + slot;
    return SUCCESS;
}
int nvmlDeviceGetComputeMode(long handle, int *mode) {
    ENTER(index_of(handle)); *mode = number("FAKE_NVML_MODE", 0); return SUCCESS;
}
int nvmlDeviceGetRemappedRows(long handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    ENTER(index_of(handle));
    *corrected = *uncorrected = 0;
    *pending = number("FAKE_NVML_PENDINGROW", 0);
    *failed = number("FAKE_NVML_BROKENROW", 0);
    return SUCCESS;
}
int nvmlDeviceGetRetiredPages(long handle, int cause, unsigned *count, unsigned long long *pages) {
    ENTER(index_of(handle));
    unsigned retired = number("FAKE_NVML_RETIRED", 0), room = *count;
    *count = retired;
    if (!pages) return retired ? INSUFFICIENT_SIZE : SUCCESS;
    for (unsigned n = 0; n < retired && n < room; n++) pages[n] = 65536ULL * (2 * n + cause);
    return SUCCESS;
}
int nvmlDeviceGetRetiredPagesPendingStatus(long handle, int *pending) {
    ENTER(index_of(handle)); *pending = number("FAKE_NVML_PENDINGPAGE", 0); return SUCCESS;
}
int nvmlDeviceGetEccMode(long handle, int *current, int *pending) {
    ENTER(index_of(handle)); *current = number("FAKE_NVML_ECC", 0) / 10; *pending = number("FAKE_NVML_ECC", 0) % 10; return SUCCESS;
}
int nvmlDeviceGetVirtualizationMode(long handle, int *mode) {
    ENTER(index_of(handle)); *mode = number("FAKE_NVML_VIRTUAL", 0); return SUCCESS;
}
