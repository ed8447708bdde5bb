/*
 * Guest instructions between marks, by class: a plugin for QEMU's user-mode emulation (plugin interface, version 1).
 *
 *   qemu-aarch64 -plugin qemu_icount.so,rules=FILE,out=FILE …
 *
 * The rules say which instruction belongs to which class: one "class mask value" per line, mask and value in
 * hexadecimal; the first rule with (opcode & mask) == value wins, and what no rule claims is counted as "other".
 *
 * A mark is the system call getpgid(MARK + k), which fails harmlessly. Each one appends the counters as they stand:
 *
 *   mark k other=N class=N …
 *
 * Counters belong to the thread that executes: a mark reports its own thread alone, so that a runtime's background
 * threads do not blur what is counted. Debian does not package the plugin interface's header, so the few declarations
 * that are needed stand here.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct qemu_info qemu_info;

typedef void (*tb_translated)(plugin_id, struct qemu_plugin_tb *);
typedef void (*tb_executed)(unsigned int, void *);
typedef void (*syscall_entered)(plugin_id, unsigned int, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                uint64_t, uint64_t, uint64_t);

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, tb_translated);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, tb_executed, int flags, void *data);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id, syscall_entered);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum {
    MAX_CLASSES = 16,
    MAX_RULES = 64,
    MAX_THREADS = 256,
    SYS_GETPGID = 155, /* AArch64 */
    NO_REGISTERS = 0,
};
#define MARK 0x51000000u
#define MARKS 0x01000000u

static char class_names[MAX_CLASSES][32] = {"other"};
static unsigned class_count = 1;

static struct {
    uint32_t mask, value;
    unsigned class;
} rules[MAX_RULES];
static unsigned rule_count;

static FILE *out;

/* One cache line apart at least, so that threads do not share one. */
static struct {
    uint64_t executed[MAX_CLASSES];
} threads[MAX_THREADS] __attribute__((aligned(128)));

/* What one translation block adds to each class; only the classes that occur in it. */
struct block {
    unsigned count;
    struct {
        uint32_t class, instructions;
    } adds[];
};

static unsigned classify(uint32_t opcode)
{
    for (unsigned i = 0; i < rule_count; i++)
        if ((opcode & rules[i].mask) == rules[i].value)
            return rules[i].class;
    return 0;
}

static void on_executed(unsigned int thread, void *data)
{
    const struct block *block = data;
    uint64_t *executed = threads[thread % MAX_THREADS].executed;
    for (unsigned i = 0; i < block->count; i++)
        executed[block->adds[i].class] += block->adds[i].instructions;
}

static void on_translated(plugin_id id, struct qemu_plugin_tb *tb)
{
    (void)id;
    uint32_t counts[MAX_CLASSES] = {0};
    size_t instructions = qemu_plugin_tb_n_insns(tb);
    for (size_t i = 0; i < instructions; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        uint32_t opcode = 0;
        if (qemu_plugin_insn_size(insn) == sizeof opcode)
            memcpy(&opcode, qemu_plugin_insn_data(insn), sizeof opcode);
        counts[classify(opcode)]++;
    }
    unsigned used = 0;
    for (unsigned c = 0; c < class_count; c++)
        used += counts[c] != 0;
    /* Blocks live as long as the process: QEMU may run a translation again at any time. */
    struct block *block = malloc(sizeof *block + used * sizeof block->adds[0]);
    if (!block) {
        fputs("qemu_icount: out of memory\n", stderr);
        abort();
    }
    block->count = 0;
    for (unsigned c = 0; c < class_count; c++)
        if (counts[c]) {
            block->adds[block->count].class = c;
            block->adds[block->count++].instructions = counts[c];
        }
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_executed, NO_REGISTERS, block);
}

static void on_syscall(plugin_id id, unsigned int thread, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                       uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != SYS_GETPGID || a1 < MARK || a1 >= MARK + MARKS)
        return;
    const uint64_t *executed = threads[thread % MAX_THREADS].executed;
    fprintf(out, "mark %llu", (unsigned long long)(a1 - MARK));
    for (unsigned c = 0; c < class_count; c++)
        fprintf(out, " %s=%llu", class_names[c], (unsigned long long)executed[c]);
    fputc('\n', out);
    fflush(out);
}

static int read_rules(const char *path)
{
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    char name[sizeof class_names[0]];
    unsigned mask, value;
    int fields;
    while ((fields = fscanf(file, "%31s %x %x", name, &mask, &value)) == 3 && rule_count < MAX_RULES) {
        unsigned c = 0;
        while (c < class_count && strcmp(class_names[c], name))
            c++;
        if (c == MAX_CLASSES)
            break;
        if (c == class_count)
            strcpy(class_names[class_count++], name);
        rules[rule_count].mask = mask;
        rules[rule_count].value = value;
        rules[rule_count++].class = c;
    }
    fclose(file);
    return fields == EOF && rule_count > 0; /* anything left unread is a broken or too long file */
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const qemu_info *info, int argc,
                                                               char **argv)
{
    (void)info;
    int ruled = 0;
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "rules=", 6))
            ruled = read_rules(argv[i] + 6);
        else if (!strncmp(argv[i], "out=", 4))
            out = fopen(argv[i] + 4, "w");
    }
    if (!ruled || !out) {
        fputs("qemu_icount: rules= must name a readable file of rules and out= a writable file\n", stderr);
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    return 0;
}
